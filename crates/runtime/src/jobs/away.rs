//! Jobs while NATS is away: what the store alone tells of them, and their end by the store alone.

use futures::{StreamExt as _, stream};
use togi_common::JobId;

use crate::error::{Class, Error, Result};
use crate::job::{Job, Kind, State, Wait};
use crate::jobs::Jobs;
use crate::layout;

/// The part's name in a job's wait.
const NATS: &str = "NATS";
/// Most jobs that are read at once.
const READS: usize = 16;

impl Jobs {
    /// Returns a job as the store knows it. A job that has not ended waits for NATS, and whether a
    /// worker holds it is not known: it counts as running once a worker has written something.
    pub(super) async fn seen_by_store(&self, id: &JobId, error: &Error) -> Result<Job> {
        let job = self.known_to_store(id).await?;
        if job.state.is_final() {
            return Ok(job);
        }
        // The request is the first object.
        let has_begun = self.store.list(&layout::job(id)).await?.len() > 1;
        Ok(Job {
            state: if has_begun {
                State::Running
            } else {
                State::Queued
            },
            wait: Some(self.absence(error)),
            ..job
        })
    }

    /// Returns the wait for NATS.
    pub(super) fn absence(&self, error: &Error) -> Wait {
        let away = self.bus.presence().borrow().clone();
        match away {
            Some(away) => Wait {
                part: NATS.to_owned(),
                reason: away.reason,
                since: away.since,
            },
            None => Wait::new(NATS, error.message()),
        }
    }

    /// Returns the jobs of a kind from the store, in no order.
    pub(super) async fn listed_by_store(&self, kind: Kind, error: &Error) -> Result<Vec<Job>> {
        let mut ids: Vec<JobId> = Vec::new();
        for name in self.store.list_dirs(&layout::jobs()).await? {
            ids.extend(name.parse::<JobId>());
        }
        let read = |id: JobId| async move { (self.seen_by_store(&id, error).await, id) };
        let mut reads = stream::iter(ids).map(read).buffer_unordered(READS);
        let mut jobs = Vec::new();
        while let Some((job, id)) = reads.next().await {
            match job {
                Ok(job) if job.kind == kind => jobs.push(job),
                Ok(_) => {}
                Err(error) if error.class() == Class::Unavailable => return Err(error),
                Err(error) => {
                    tracing::warn!(job = %id, error = error.chain(), "a job cannot be read")
                }
            }
        }
        Ok(jobs)
    }

    /// Ends a job in the store, which decides. A worker that holds it stops when its lease ends,
    /// or when NATS is back and the record says so.
    pub(super) async fn cancel_in_store(&self, id: &JobId) -> Result<Job> {
        let job = self.known_to_store(id).await?;
        let ended = if job.state.is_final() {
            job
        } else {
            let cancelled = Job {
                cancel_requested: true,
                ..job
            };
            self.finish(cancelled, State::Cancelled).await?
        };
        self.bus.leave_undone();
        if ended.state == State::Cancelled {
            return Ok(ended);
        }
        let message = format!("job \"{id}\" has ended already");
        Err(Error::precondition(message).with_field("job"))
    }
}
