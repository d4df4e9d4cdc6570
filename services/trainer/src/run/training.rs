//! A run: the training thread, its rows, and the async side, which makes updates durable and
//! forwards requests to stop to the thread.

use std::sync::Arc;

use togi_model::Engine;
use togi_runtime::worker::Claim;
use togi_runtime::worker::lease::Lease;
use togi_runtime::{Fence, JobId, Stopper};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug, info, warn};

use crate::error::{Error, Result};
use crate::learn::data::{Order, Reader};
use crate::learn::snapshot::Snapshot;
use crate::learn::step::Step;
use crate::learn::thread::TrainingThread;
use crate::learn::train::{Plan, State, Update};
use crate::papers::log;
use crate::patience::{report, retry};
use crate::run::announcement::Announcement;
use crate::run::checkpoint::{self, Owner};
use crate::run::job::Job;
use crate::run::parts::Parts;

/// The inputs and the initial state of a run.
pub(crate) struct Start {
    pub(crate) engine: Arc<Engine>,
    pub(crate) state: State,
    pub(crate) plan: Plan,
    pub(crate) order: Order,
    /// Manifest of the checkpoint that the run resumes from.
    pub(crate) checkpoint: Option<String>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All steps are done and stored.
    Done,
    /// A checkpoint is stored; another worker may resume.
    Stopped,
    /// The job was cancelled.
    Cancelled,
    /// Another worker has taken over the job.
    Lost,
}

/// A run in progress. Dropping it asks the thread to end, which happens within a step.
pub(crate) struct Run {
    job: JobId,
    owner: Owner,
    fence: Fence,
    parts: Parts,
    log: log::Writer,
    checkpoint: Option<String>,
    reader: AbortOnDropHandle<()>,
    _reporting: AbortOnDropHandle<()>,
    thread: TrainingThread,
}

impl Run {
    /// Starts the reader and the training thread.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub(crate) fn new(parts: &Parts, claim: &Claim, job: &Job, start: Start) -> Result<Run> {
        let Start {
            engine,
            state,
            plan,
            order,
            checkpoint,
        } = start;
        let (reader, rows) = Reader::new(
            parts.data_prep.clone(),
            order,
            parts.training.prefetch_bytes,
        );
        let reporting = tokio::spawn(report(claim.lease.clone(), reader.waits()));
        let reading = reader.run(state.progress.clone()).in_current_span();
        let reader = AbortOnDropHandle::new(tokio::spawn(reading));
        let gauge = parts.gauge.clone();
        let thread = TrainingThread::start(engine, gauge, state, plan, rows)?;
        Ok(Run {
            job: job.id.clone(),
            owner: job.owner.clone(),
            fence: claim.lease.fence(),
            parts: parts.clone(),
            log: log::Writer::new(parts.store.clone(), &job.id, claim.lease.fence()),
            checkpoint,
            reader,
            _reporting: AbortOnDropHandle::new(reporting),
            thread,
        })
    }

    /// Makes updates durable until the thread ends.
    ///
    /// # Errors
    /// The thread's errors; a loss that is not finite comes with the last good checkpoint. The
    /// store's errors.
    pub(crate) async fn drive(&mut self, lease: &Lease, stopper: &Stopper) -> Result<(End, State)> {
        let mut end = End::Done;
        let mut flush = interval(self.parts.training.log_flush());
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = lease.lost(), if end != End::Lost => {
                    end = End::Lost;
                    self.thread.abort();
                    self.reader.abort();
                }
                () = lease.cancelled(), if end == End::Done => {
                    end = End::Cancelled;
                    self.thread.abort();
                    self.reader.abort();
                }
                () = stopper.stopped(), if end == End::Done => {
                    end = End::Stopped;
                    self.thread.stop();
                    self.reader.abort();
                }
                update = self.thread.update() => match update {
                    Some(_) if end == End::Lost => {}
                    Some(update) => self.keep(update, lease).await?,
                    None => break,
                },
                _ = flush.tick(), if end != End::Lost => self.flush().await,
            }
        }
        let (state, trained) = self.thread.join().await?;
        if end == End::Lost {
            return Ok((end, state));
        }
        match trained {
            // All steps were done before the stop, so nothing is handed back.
            Ok(true) if end == End::Stopped => end = End::Done,
            Ok(false) if end == End::Done => return Err(Error::StoppedEarly),
            Ok(_) => {}
            Err(error) => {
                self.last_lines(lease).await?;
                return Err(self.with_checkpoint(error));
            }
        }
        match end {
            End::Cancelled => self.last_lines(lease).await?,
            _ => retry!(lease, self.log.fold())?,
        }
        Ok((end, state))
    }

    async fn keep(&mut self, update: Update, lease: &Lease) -> Result<()> {
        match update {
            Update::Step(done) => {
                let Step {
                    step,
                    loss,
                    gradient_norm,
                    learning_rate,
                    tokens_per_second,
                    ..
                } = done.line;
                debug!(job = %self.job, step, loss, gradient_norm, learning_rate, tokens_per_second, "step done");
                self.parts.metrics.step(&done);
                self.log.push(done.line);
                Ok(())
            }
            Update::Checkpoint(snapshot) => self.save(*snapshot, lease).await,
        }
    }

    /// Stores a checkpoint. Its lines are made durable first, so that a worker that resumes there
    /// has all of them.
    async fn save(&mut self, snapshot: Snapshot, lease: &Lease) -> Result<()> {
        retry!(lease, self.log.fold())?;
        let (store, owner, fence) = (&self.parts.store, &self.owner, self.fence);
        let manifest = retry!(lease, checkpoint::save(store, owner, fence, &snapshot))?;
        let step = snapshot.progress.step;
        info!(job = %self.job, step, %manifest, "checkpoint saved");
        self.checkpoint = Some(manifest.to_string());
        let saved = Announcement::CheckpointSaved {
            job: &self.job,
            step,
            manifest: &manifest,
        };
        self.parts.announce(saved).await;
        // Progress is stored, so earlier failed attempts no longer count.
        if let Err(error) = lease.progressed().await {
            debug!(job = %self.job, error = error.chain(), "failed attempts still count");
        }
        if let Err(error) = checkpoint::prune(&self.parts.store, &self.job).await {
            warn!(job = %self.job, %error, "older checkpoints stay for now");
        }
        Ok(())
    }

    /// Makes lines durable. If the store is unreachable, they wait for the next flush and training
    /// continues.
    async fn flush(&mut self) {
        let Some(newest) = self.log.pending() else {
            return;
        };
        let progress = self.parts.bus.put_progress(&self.job, newest).await;
        if let Err(error) = progress {
            debug!(job = %self.job, error = error.chain(), "progress was not published");
        }
        if let Err(error) = self.log.flush().await {
            warn!(job = %self.job, %error, "the job's log waits for the store");
        }
    }

    /// Merges the log into one object, because the job ends here.
    async fn last_lines(&mut self, lease: &Lease) -> Result<()> {
        retry!(lease, self.log.fold())?;
        let (store, job) = (&self.parts.store, &self.job);
        retry!(lease, log::finish(store, job))?;
        Ok(())
    }

    fn with_checkpoint(&self, error: Error) -> Error {
        match error {
            Error::NotFinite {
                what,
                step,
                epoch,
                samples,
                ..
            } => Error::NotFinite {
                what,
                step,
                epoch,
                samples,
                checkpoint: self.checkpoint.clone(),
            },
            other => other,
        }
    }
}
