//! Making records and messages again from the store: at start, and every half minute, because
//! nobody tells when NATS has lost something.

use std::collections::HashMap;
use std::time::Duration;

use togi_common::JobId;

use crate::error::{Class, Result};
use crate::jobs::Jobs;
use crate::jobs::job::Kind;
use crate::jobs::record::{Envelope, Record};
use crate::layout;
use crate::life::stop::Stopper;

const PERIOD: Duration = Duration::from_secs(30);

/// What a reconciliation had to do.
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
    /// Compares the store with bucket and stream and makes what is missing. Harmless at any time
    /// and from several processes at once.
    ///
    /// # Errors
    /// `Unavailable`; one broken job does not keep the others.
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

    /// A job with a record that has not ended: does the store know its end? Is its message there?
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

    /// A folder without a record: a job, if a request is in it.
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

    /// Reconciles now and every half minute until the stopper stops; what fails is logged and tried
    /// again.
    ///
    /// # Errors
    /// Never: the signature is that of a task.
    pub async fn keep(self, kind: Kind, stopper: Stopper) -> Result<()> {
        loop {
            if let Some(Err(error)) = stopper.run(self.reconcile(kind)).await {
                tracing::warn!(
                    kind = kind.name(),
                    error = error.chain(),
                    "jobs cannot be reconciled now"
                );
            }
            if !stopper.wait(PERIOD).await {
                return Ok(());
            }
        }
    }
}
