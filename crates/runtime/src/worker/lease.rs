//! A worker's lease of a job: held while the server confirms it, lost by our own monotonic clock at
//! the latest when the server may give the job away, and never held again once lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::Subject;
use futures::StreamExt as _;
use togi_common::JobId;
use tokio::sync::watch;

use crate::error::{Class, Error, Result};
use crate::fence::Fence;
use crate::jobs::Jobs;
use crate::jobs::job::State as JobState;
use crate::jobs::record::Record;

/// A lease. Clones are the same lease.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None` for a lease that nobody can take: [`Lease::unmanaged`].
    jobs: Option<Jobs>,
    id: JobId,
    worker: String,
    fence: Fence,
    started: Instant,
    /// When the lease ends unless it is confirmed before: nanoseconds after `started`.
    deadline: AtomicU64,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    lost: bool,
    cancelled: bool,
}

impl Lease {
    pub(crate) fn new(
        jobs: &Jobs,
        id: &JobId,
        worker: &str,
        fence: Fence,
        confirmed: Instant,
    ) -> Self {
        let lease = Self(Arc::new(Inner {
            jobs: Some(jobs.clone()),
            id: id.clone(),
            worker: worker.to_owned(),
            fence,
            started: confirmed,
            deadline: AtomicU64::new(0),
            state: watch::Sender::new(State::default()),
        }));
        lease.set_deadline(jobs.bus().config().ack_wait());
        lease
    }

    /// Returns a lease that is never lost and never cancelled, for trying out a handler without a
    /// bus.
    #[must_use]
    pub fn unmanaged(id: JobId, fence: Fence) -> Self {
        Self(Arc::new(Inner {
            jobs: None,
            id,
            worker: String::new(),
            fence,
            started: Instant::now(),
            deadline: AtomicU64::new(u64::MAX),
            state: watch::Sender::new(State::default()),
        }))
    }

    /// Returns the fence of this claim.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.0.fence
    }

    /// Returns the job.
    #[must_use]
    pub fn job(&self) -> &JobId {
        &self.0.id
    }

    /// Returns whether the lease is held now. Cheap enough for every step, from any thread, and
    /// right even after the process was stopped for a while.
    #[must_use]
    pub fn is_held(&self) -> bool {
        if self.0.state.borrow().lost {
            return false;
        }
        let held = self.left() > Duration::ZERO;
        if !held {
            self.lose();
        }
        held
    }

    /// Waits until the lease is lost.
    pub async fn lost(&self) {
        let mut state = self.0.state.subscribe();
        while self.is_held() {
            // No lease is as long as a day, and an unmanaged one has no end.
            let left = self.left().min(Duration::from_secs(24 * 3600));
            tokio::select! {
                _ = state.changed() => {}
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// Waits until somebody has asked for the job's end.
    pub async fn cancelled(&self) {
        let mut state = self.0.state.subscribe();
        // The sender lives in `self`.
        let _ = state.wait_for(|state| state.cancelled).await;
    }

    /// Returns whether somebody has asked for the job's end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.state.borrow().cancelled
    }

    /// Asks the record whether the job is still ours: to be called before anything is published.
    ///
    /// # Errors
    /// `Aborted` if it is not; `Unavailable` if nobody answers.
    pub async fn check(&self) -> Result<()> {
        self.still_held()?;
        let Some(jobs) = &self.0.jobs else {
            return Ok(());
        };
        let record = jobs.record(&self.0.id).await?;
        self.see(record.as_ref().map(|(record, _)| record));
        self.still_held()
    }

    fn still_held(&self) -> Result<()> {
        if self.is_held() {
            return Ok(());
        }
        Err(Error::new(
            Class::Aborted,
            format!("the lease of job {} is lost", self.0.id),
        ))
    }

    /// Says that lasting progress was made (a checkpoint): failed attempts before it do not count
    /// towards the last one any more. So a job whose workers die now and then ends well, and
    /// one that never gets anywhere ends after five.
    ///
    /// # Errors
    /// `Aborted` if the job is not ours any more; `Unavailable`.
    pub async fn progressed(&self) -> Result<()> {
        self.still_held()?;
        let Some(jobs) = &self.0.jobs else {
            return Ok(());
        };
        loop {
            let found = jobs.record(&self.0.id).await?;
            self.see(found.as_ref().map(|(record, _)| record));
            self.still_held()?;
            let Some((mut record, revision)) = found else {
                return Ok(());
            };
            if record.job.attempts == 0 {
                return Ok(());
            }
            record.job.attempts = 0;
            match jobs
                .bus()
                .jobs()
                .update(self.0.id.as_str(), record.to_bytes()?, revision)
                .await
            {
                Ok(_) => return Ok(()),
                Err(error) if error.class() == Class::Aborted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Keeps the lease until it is lost: confirms it with the server every third of its time, and
    /// follows the record for a cancellation or a successor.
    pub(crate) async fn keep(self, reply: Subject) {
        let Some(jobs) = self.0.jobs.clone() else {
            return;
        };
        tokio::select! {
            () = self.confirm(&jobs, &reply) => {}
            () = self.follow(&jobs) => {}
            () = self.lost() => {}
        }
    }

    async fn confirm(&self, jobs: &Jobs, reply: &Subject) {
        let ack_wait = jobs.bus().config().ack_wait();
        loop {
            // Before the request: the server's clock starts when it arrives, ours must not start
            // later.
            let asked = Instant::now();
            let answer = tokio::time::timeout(ack_wait / 3, jobs.bus().answer(reply, "+WPI")).await;
            match answer {
                Ok(Ok(())) if self.is_held() => {
                    self.set_deadline(asked.saturating_duration_since(self.0.started) + ack_wait);
                }
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    tracing::debug!(job = %self.0.id, error = error.chain(), "lease not confirmed")
                }
                Err(_) => tracing::debug!(job = %self.0.id, "lease not confirmed in time"),
            }
            tokio::time::sleep((ack_wait / 3).saturating_sub(asked.elapsed())).await;
            // The watch below is quicker; this is for the time in which it has broken without a
            // word.
            if let Ok(found) = jobs.record(&self.0.id).await {
                self.see(found.as_ref().map(|(record, _)| record));
            }
        }
    }

    async fn follow(&self, jobs: &Jobs) {
        let mut changes = jobs.bus().jobs().watch(self.0.id.as_str());
        while let Some(entry) = changes.next().await {
            let record = entry
                .value
                .and_then(|value| Record::from_bytes(&value).ok());
            // An entry of before our claim may come late; one without a value tells nothing.
            if let Some(record) = record.filter(|record| record.job.fence >= self.0.fence) {
                self.see(Some(&record));
            }
        }
    }

    /// Draws the conclusions from a record that was read after our claim. A missing one (NATS was
    /// wiped) takes nothing away by itself: the server does not confirm the lease any more
    /// then, and the clock decides.
    fn see(&self, record: Option<&Record>) {
        let Some(record) = record else { return };
        let job = &record.job;
        let ours = job.fence == self.0.fence
            && job.worker == self.0.worker
            && job.state == JobState::Running;
        if !ours {
            self.lose();
        }
        if job.cancel_requested {
            self.0
                .state
                .send_if_modified(|state| !std::mem::replace(&mut state.cancelled, true));
        }
    }

    pub(crate) fn lose(&self) {
        self.0
            .state
            .send_if_modified(|state| !std::mem::replace(&mut state.lost, true));
    }

    fn set_deadline(&self, after_start: Duration) {
        let nanoseconds = u64::try_from(after_start.as_nanos()).unwrap_or(u64::MAX);
        self.0.deadline.store(nanoseconds, Ordering::Release);
    }

    fn left(&self) -> Duration {
        let deadline = Duration::from_nanos(self.0.deadline.load(Ordering::Acquire));
        deadline.saturating_sub(self.0.started.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lease_without_confirmation_is_lost_by_the_clock_and_stays_lost() {
        let lease = Lease::unmanaged("j".parse().unwrap(), Fence(3));
        assert!(lease.is_held() && !lease.is_cancelled());
        lease.check().await.unwrap();
        lease.set_deadline(Duration::ZERO);
        lease.lost().await;
        lease.set_deadline(Duration::from_secs(3600));
        assert!(!lease.is_held());
        assert_eq!(lease.check().await.unwrap_err().class(), Class::Aborted);
    }
}
