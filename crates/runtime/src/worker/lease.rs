//! A worker's lease of a job. It is held while the server confirms it. It is lost, by our monotonic
//! clock, at the latest when the server may give the job to another worker, and stays lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::Subject;
use futures::StreamExt as _;
use togi_common::JobId;
use tokio::sync::watch;

use crate::error::{Class, Error, Result};
use crate::fence::Fence;
use crate::job::{Job, State as JobState, Wait};
use crate::jobs::Jobs;
use crate::jobs::record::Record;

/// A lease. Clones are the same lease.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    jobs: Jobs,
    id: JobId,
    worker: String,
    fence: Fence,
    hold: Hold,
}

/// Whether a lease is held, by the clock and by the reports of others.
#[derive(Debug)]
struct Hold {
    started: Instant,
    /// The lease's end unless it is confirmed before, in nanoseconds after `started`.
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
        Self(Arc::new(Inner {
            hold: Hold::new(confirmed, jobs.bus().config().ack_wait()),
            jobs: jobs.clone(),
            id: id.clone(),
            worker: worker.to_owned(),
            fence,
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

    /// Returns whether the lease is held now. It is cheap enough to ask at every step, works in any
    /// thread, and is right even after the process was suspended.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.hold.is_held()
    }

    /// Waits until the lease is lost.
    pub async fn lost(&self) {
        self.0.hold.lost().await;
    }

    /// Waits until the job's end is requested.
    pub async fn cancelled(&self) {
        let mut state = self.0.hold.state.subscribe();
        // It cannot fail: the sender lives in `self`.
        let _ = state.wait_for(|state| state.cancelled).await;
    }

    /// Returns whether the job's end was requested.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.hold.state.borrow().cancelled
    }

    /// Reads in the record whether the job is still ours. A handler calls it before it publishes.
    ///
    /// # Errors
    /// `Aborted` if the job has another holder; `Unavailable`.
    pub async fn check(&self) -> Result<()> {
        self.still_held()?;
        let record = self.0.jobs.record(&self.0.id).await?;
        self.see(record.as_ref().map(|(record, _)| record));
        self.still_held()
    }

    /// Reads in the store whether the job is still open: a process that NATS does not reach may
    /// have cancelled it there, and the record hears of that later. A handler calls it before it
    /// publishes.
    ///
    /// # Errors
    /// `Cancelled` if the job has ended; `Unavailable`.
    pub async fn still_open(&self) -> Result<()> {
        let Some(ended) = self.0.jobs.final_record(&self.0.id).await? else {
            return Ok(());
        };
        self.0.hold.cancel();
        let message = format!("job {} has ended already", ended.id);
        Err(Error::new(Class::Cancelled, message))
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

    /// Records lasting progress, such as a checkpoint, by setting the count of failed attempts to
    /// 0. So a long job survives a few lost workers, and a job without progress ends after
    /// [`MAX_ATTEMPTS`](crate::jobs::MAX_ATTEMPTS).
    ///
    /// # Errors
    /// `Aborted` if the job has another holder; `Unavailable`.
    pub async fn progressed(&self) -> Result<()> {
        self.change(|job| std::mem::take(&mut job.attempts) > 0)
            .await
    }

    /// Writes into the job's record what the job waits for. A failure is only logged: the wait
    /// goes on without it.
    pub async fn waits_for(&self, wait: &Wait) {
        self.note(Some(wait)).await;
    }

    /// Writes into the job's record that it works again.
    pub async fn goes_on(&self) {
        self.note(None).await;
    }

    async fn note(&self, wait: Option<&Wait>) {
        let change = |job: &mut Job| {
            let before = std::mem::replace(&mut job.wait, wait.cloned());
            before != job.wait
        };
        let noting = self.0.jobs.bus().in_a_moment(self.change(change));
        if let Err(error) = noting.await {
            let part = wait.map(|wait| wait.part.as_str());
            tracing::debug!(job = %self.0.id, part, error = error.chain(), "a wait is not noted");
        }
    }

    /// Changes the record while it is ours. `change` returns whether it has changed something.
    async fn change(&self, change: impl Fn(&mut Job) -> bool) -> Result<()> {
        self.still_held()?;
        let jobs = &self.0.jobs;
        loop {
            let found = jobs.record(&self.0.id).await?;
            self.see(found.as_ref().map(|(record, _)| record));
            self.still_held()?;
            let Some((mut record, revision)) = found else {
                return Ok(());
            };
            if !change(&mut record.job) {
                return Ok(());
            }
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
        let kept = async { tokio::join!(self.confirm(&reply), self.follow()) };
        tokio::select! {
            _ = kept => {}
            () = self.lost() => {}
        }
    }

    /// Returns when the lease is lost.
    async fn confirm(&self, reply: &Subject) {
        let jobs = &self.0.jobs;
        let ack_wait = jobs.bus().config().ack_wait();
        loop {
            // Taken before the request, because the server's clock starts when the request arrives
            // and ours must not start later.
            let asked = Instant::now();
            let answer = tokio::time::timeout(ack_wait / 3, jobs.bus().answer(reply, "+WPI")).await;
            match answer {
                Ok(Ok(())) if self.is_held() => {
                    self.0.hold.set_deadline(asked + ack_wait);
                }
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    tracing::debug!(job = %self.0.id, error = error.chain(), "lease not confirmed")
                }
                Err(_) => tracing::debug!(job = %self.0.id, "lease not confirmed in time"),
            }
            tokio::time::sleep((ack_wait / 3).saturating_sub(asked.elapsed())).await;
            // `follow` is quicker, but its watch may have broken without an error.
            if let Ok(found) = jobs.record(&self.0.id).await {
                self.see(found.as_ref().map(|(record, _)| record));
            }
        }
    }

    async fn follow(&self) {
        let mut changes = self.0.jobs.bus().jobs().watch(self.0.id.as_str());
        while let Some(entry) = changes.next().await {
            let record = entry
                .value
                .and_then(|value| Record::from_bytes(&value).ok());
            // An entry from before our claim may arrive late.
            if let Some(record) = record.filter(|record| record.job.fence >= self.0.fence) {
                self.see(Some(&record));
            }
        }
    }

    /// Updates the lease from a record that was read after our claim. A missing record means that
    /// NATS was wiped: the server then confirms no lease, and the clock decides.
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
            self.0.hold.cancel();
        }
    }

    pub(crate) fn lose(&self) {
        self.0.hold.lose();
    }
}

impl Hold {
    fn new(confirmed: Instant, ack_wait: Duration) -> Self {
        let hold = Self {
            started: confirmed,
            deadline: AtomicU64::new(0),
            state: watch::Sender::new(State::default()),
        };
        hold.set_deadline(confirmed + ack_wait);
        hold
    }

    fn is_held(&self) -> bool {
        if self.state.borrow().lost {
            return false;
        }
        let held = self.left() > Duration::ZERO;
        if !held {
            self.lose();
        }
        held
    }

    async fn lost(&self) {
        let mut state = self.state.subscribe();
        while self.is_held() {
            tokio::select! {
                _ = state.changed() => {}
                () = tokio::time::sleep(self.left()) => {}
            }
        }
    }

    fn lose(&self) {
        self.state
            .send_if_modified(|state| !std::mem::replace(&mut state.lost, true));
    }

    fn cancel(&self) {
        self.state
            .send_if_modified(|state| !std::mem::replace(&mut state.cancelled, true));
    }

    fn set_deadline(&self, end: Instant) {
        let after_start = end.saturating_duration_since(self.started);
        let nanoseconds = u64::try_from(after_start.as_nanos()).unwrap_or(u64::MAX);
        self.deadline.store(nanoseconds, Ordering::Release);
    }

    fn left(&self) -> Duration {
        let deadline = Duration::from_nanos(self.deadline.load(Ordering::Acquire));
        deadline.saturating_sub(self.started.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lease_without_confirmation_is_lost_by_the_clock_and_stays_lost() {
        let (start, hour) = (Instant::now(), Duration::from_secs(3600));
        let hold = Hold::new(start, hour);
        assert!(hold.is_held() && !hold.state.borrow().cancelled);
        hold.set_deadline(start);
        hold.lost().await;
        hold.set_deadline(start + hour);
        assert!(!hold.is_held());
    }
}
