//! A run: the training thread, its rows, and the async side that makes its updates durable and
//! passes requests to save or to stop to the thread.

use std::sync::Arc;
use std::thread;

use togi_model::Engine;
use togi_runtime::worker::Claim;
use togi_runtime::worker::lease::Lease;
use togi_runtime::{Fence, JobId, Stopper};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, Span, debug, info, warn};

use crate::error::{Error, Result};
use crate::learn::data::{Order, Reader};
use crate::learn::step::Step;
use crate::learn::train::{self, Machine, Plan, Request, State, Update};
use crate::papers::log;
use crate::patience::retry;
use crate::run::announcement::Announcement;
use crate::run::checkpoint::{self, Owner, Snapshot};
use crate::run::job::Job;
use crate::run::parts::Parts;

/// Updates that the thread may be ahead of the store.
const UPDATES_AHEAD: usize = 64;

/// Where a run begins.
pub(crate) struct Start {
    pub(crate) engine: Arc<Engine>,
    pub(crate) state: State,
    pub(crate) plan: Plan,
    pub(crate) order: Order,
    /// Manifest of the checkpoint that it begins at.
    pub(crate) checkpoint: Option<String>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All steps are done and kept.
    Done,
    /// A checkpoint is kept; another worker may go on.
    Stopped,
    /// The job was cancelled.
    Cancelled,
    /// The job is another worker's.
    Lost,
}

/// What the thread gives back: the state, and whether all steps are done.
type Trained = (State, Result<bool>);

/// A run in progress. Dropping it asks the thread to end, which it does within a step.
pub(crate) struct Run {
    job: JobId,
    owner: Owner,
    fence: Fence,
    parts: Parts,
    log: log::Writer,
    checkpoint: Option<String>,
    request: Arc<Request>,
    updates: mpsc::Receiver<Update>,
    reader: AbortOnDropHandle<()>,
    thread: Option<thread::JoinHandle<Trained>>,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.request.abort();
    }
}

impl Run {
    /// Starts the reader and the training thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn new(parts: &Parts, claim: &Claim, job: &Job, start: Start) -> Result<Run> {
        let Start {
            engine,
            mut state,
            plan,
            order,
            checkpoint,
        } = start;
        let (reader, mut rows) = Reader::new(
            parts.data_prep.clone(),
            order,
            parts.training.prefetch_bytes,
        );
        let (sender, updates) = mpsc::channel(UPDATES_AHEAD);
        let request = Arc::new(Request::default());
        let reading = reader.run(state.progress.clone()).in_current_span();
        let reader = AbortOnDropHandle::new(tokio::spawn(reading));
        let (requested, span) = (Arc::clone(&request), Span::current());
        let gauge = parts.gauge.clone();
        // The one thread that owns the device while the job runs.
        let thread = thread::Builder::new()
            .name("togi-train".to_owned())
            .spawn(move || {
                let trained = span.in_scope(|| {
                    let machine = Machine {
                        engine: &engine,
                        gauge: &gauge,
                    };
                    train::train(&mut state, &plan, &machine, &mut rows, &requested, &sender)
                });
                (state, trained)
            })?;
        Ok(Run {
            job: job.id.clone(),
            owner: job.owner.clone(),
            fence: claim.lease.fence(),
            parts: parts.clone(),
            log: log::Writer::new(parts.store.clone(), &job.id, claim.lease.fence()),
            checkpoint,
            request,
            updates,
            reader,
            thread: Some(thread),
        })
    }

    /// Makes updates durable until the thread ends.
    ///
    /// # Errors
    /// The thread's, with the last good checkpoint named where the loss is not finite; the store's.
    pub(crate) async fn drive(&mut self, lease: &Lease, stopper: &Stopper) -> Result<(End, State)> {
        let mut end = End::Done;
        let mut flush = interval(self.parts.training.log_flush());
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = lease.lost(), if end != End::Lost => {
                    end = End::Lost;
                    self.request.abort();
                    self.reader.abort();
                }
                () = lease.cancelled(), if end == End::Done => {
                    end = End::Cancelled;
                    self.request.abort();
                    self.reader.abort();
                }
                () = stopper.stopped(), if end == End::Done => {
                    end = End::Stopped;
                    self.request.stop();
                    self.reader.abort();
                }
                update = self.updates.recv() => match update {
                    Some(_) if end == End::Lost => {}
                    Some(update) => self.keep(update, lease).await?,
                    None => break,
                },
                _ = flush.tick(), if end != End::Lost => self.flush().await,
            }
        }
        let (state, trained) = self.join().await?;
        if end == End::Lost {
            return Ok((end, state));
        }
        match trained {
            // Nothing is left to hand back.
            Ok(true) if end == End::Stopped => end = End::Done,
            Ok(false) if end == End::Done => return Err(Error::ThreadGone),
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

    /// The lines up to a checkpoint are durable before it is: a worker that resumes there has them
    /// all.
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
        // What a killed worker did before is kept: it counts as an attempt that failed no more.
        if let Err(error) = lease.progressed().await {
            debug!(job = %self.job, error = error.chain(), "failed attempts still count");
        }
        if let Err(error) = checkpoint::prune(&self.parts.store, &self.job).await {
            warn!(job = %self.job, %error, "older checkpoints stay for now");
        }
        Ok(())
    }

    /// An unreachable store keeps lines waiting, not the training: the next flush takes them along.
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

    /// The job ends here: its log becomes one object.
    async fn last_lines(&mut self, lease: &Lease) -> Result<()> {
        retry!(lease, self.log.fold())?;
        let (store, job) = (&self.parts.store, &self.job);
        retry!(lease, log::finish(store, job))?;
        Ok(())
    }

    async fn join(&mut self) -> Result<Trained> {
        let Some(thread) = self.thread.take() else {
            return Err(Error::ThreadGone);
        };
        // The channel is closed, so the thread is on its last instructions.
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        joined
            .map_err(|_| Error::ThreadGone)?
            .map_err(|_| Error::ThreadGone)
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
