//! Makes records and messages again from the store, at the start, after each absence of NATS, and
//! every half minute, because NATS does not report a loss.

use std::collections::HashMap;
use std::time::Duration;

use togi_common::JobId;

use crate::error::{Class, Result};
use crate::job::Kind;
use crate::jobs::Jobs;
use crate::jobs::record::{Envelope, Record};
use crate::layout;
use crate::life::stop::Stopper;

const PERIOD: Duration = Duration::from_secs(30);

/// The work of a reconciliation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Records made again from the store.
    pub restored: usize,
    /// Messages published again.
    pub published: usize,
    /// Records brought to the end that the store knew already.
    pub settled: usize,
}

impl Jobs {
    /// Compares the store with the bucket and the stream and creates what is missing. Several
    /// processes may do it at any time.
    ///
    /// # Errors
    /// `Unavailable`. A broken job is logged and does not stop the others.
    pub async fn reconcile(&self, kind: Kind) -> Result<Reconciled> {
        let mut done = Reconciled::default();
        let records: HashMap<JobId, Record> = self
            .records()
            .await?
            .into_iter()
            .map(|(record, _)| (record.job.id.clone(), record))
            .collect();
        for name in self.store.list_dirs(&layout::jobs()).await? {
            let Ok(id) = name.parse() else {
                continue;
            };
            let result = match records.get(&id) {
                Some(record) if record.job.kind != kind || record.job.state.is_final() => {
                    continue;
                }
                Some(_) => self.complete(&id, &mut done).await,
                None => self.remake(kind, &id, &mut done).await,
            };
            match result {
                Ok(()) => {}
                Err(error) if error.class() == Class::Unavailable => return Err(error),
                Err(error) => {
                    tracing::warn!(job = %id, error = error.chain(), "job cannot be reconciled")
                }
            }
        }
        if done != Reconciled::default() {
            let Reconciled {
                restored,
                published,
                settled,
            } = done;
            tracing::info!(
                kind = kind.name(),
                restored,
                published,
                settled,
                "jobs reconciled"
            );
        }
        Ok(done)
    }

    /// Completes a job whose record has not ended: by its end in the store, or by a new message.
    async fn complete(&self, id: &JobId, done: &mut Reconciled) -> Result<()> {
        if let Some(ended) = self.final_record(id).await? {
            self.settle(&ended).await?;
            self.say_outcome(&ended).await?;
            done.settled += 1;
        } else if self.ensure_message(id).await? {
            done.published += 1;
        }
        Ok(())
    }

    /// Restores the record of a job's folder, if the folder has a request.
    async fn remake(&self, kind: Kind, id: &JobId, done: &mut Reconciled) -> Result<()> {
        let envelope: Envelope = match self.store.get_json(&layout::job_request(id)).await {
            Ok(envelope) => envelope,
            Err(error) if error.class() == Class::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if envelope.kind == kind.name() {
            self.restore(id, &envelope, 0).await?;
            done.restored += 1;
        }
        Ok(())
    }

    /// Reconciles until the stopper stops: now, every half minute, and as soon as NATS is back. A
    /// failure is logged and repeated.
    ///
    /// # Errors
    /// Never: the signature is that of a task.
    pub async fn keep(self, kind: Kind, stopper: Stopper) -> Result<()> {
        let mut rounds = self.bus.rounds(PERIOD);
        while rounds.next(&stopper).await {
            if let Some(Err(error)) = stopper.run(self.reconcile(kind)).await {
                rounds.failed();
                tracing::warn!(
                    kind = kind.name(),
                    error = error.chain(),
                    "jobs cannot be reconciled now"
                );
            }
        }
        Ok(())
    }
}
