//! One attempt at a claimed job: start the lease, run the handler, write the outcome.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use opentelemetry::KeyValue;
use togi_common::JobId;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Class, Error, Result};
use crate::events::{self, Event};
use crate::job::{Failure, Job, State, Wait};
use crate::jobs::MAX_ATTEMPTS;
use crate::life::backoff::Backoff;
use crate::telemetry::{self, semconv};
use crate::worker::delivery::{Delivery, nak};
use crate::worker::handler::{Claim, Handler, Outcome};
use crate::worker::lease::Lease;
use crate::worker::slot::Slot;

/// How long a handler may go on after its lease is lost, its job is cancelled or the process stops.
const PATIENCE: Duration = Duration::from_secs(20);

impl<H: Handler> Slot<H> {
    pub(super) async fn attempt(&self, delivery: &Delivery, id: &JobId, job: Job) -> Result<()> {
        let kind = H::KIND.name();
        let lease = Lease::new(
            &self.jobs,
            id,
            &self.context.instance,
            job.fence,
            delivery.since,
        );
        let keeper =
            AbortOnDropHandle::new(tokio::spawn(lease.clone().keep(delivery.reply.clone())));
        if job.cancel_requested {
            return self.end(delivery, &lease, job, Outcome::Cancelled).await;
        }
        if let Err(error) = self.jobs.bus().publish(Event::job_started(&job)).await {
            tracing::warn!(error = error.chain(), "job.started was not published");
        }
        tracing::info!(kind, attempt = job.attempts + 1, "job started");
        let begun = Instant::now();
        let outcome = match self.jobs.request(id).await {
            Ok(request) => {
                let stopper = self.context.stopper.child();
                let claim = Claim {
                    job: job.clone(),
                    request,
                    lease: lease.clone(),
                    stopper,
                };
                self.handle(claim).await
            }
            Err(error) => Outcome::Failed(error),
        };
        let attributes = [
            KeyValue::new(
                semconv::MESSAGING_DESTINATION_TEMPLATE,
                events::job_subject(H::KIND),
            ),
            KeyValue::new(semconv::OUTCOME, outcome_name(&outcome)),
        ];
        let meter = telemetry::meter();
        let duration = meter
            .f64_histogram(semconv::MESSAGING_PROCESS_DURATION)
            .with_unit("s")
            .build();
        duration.record(begun.elapsed().as_secs_f64(), &attributes);
        let ended = self.end(delivery, &lease, job, outcome).await;
        drop(keeper);
        ended
    }

    /// Runs the handler. A panic is a failed attempt. A handler that does not end in time is
    /// abandoned.
    async fn handle(&self, claim: Claim) -> Outcome {
        let lease = claim.lease.clone();
        let work = AssertUnwindSafe(self.handler.handle(claim)).catch_unwind();
        let patience = async {
            let given_up = tokio::select! {
                () = lease.lost() => Outcome::LeaseLost,
                () = lease.cancelled() => Outcome::Cancelled,
                () = self.context.stopper.stopped() => Outcome::HandBack,
            };
            tokio::time::sleep(PATIENCE).await;
            given_up
        };
        tokio::select! {
            outcome = work => outcome.unwrap_or_else(|panic| {
                let error = Error::internal(format!("the worker panicked: {}", panic_text(&*panic)));
                tracing::error!(error = error.chain(), "a job's handler panicked");
                Outcome::Failed(error)
            }),
            given_up = patience => {
                tracing::warn!(outcome = outcome_name(&given_up), "a job's handler did not end in time");
                given_up
            }
        }
    }

    /// Writes the outcome of the attempt and answers the message.
    async fn end(
        &self,
        delivery: &Delivery,
        lease: &Lease,
        job: Job,
        outcome: Outcome,
    ) -> Result<()> {
        let name = outcome_name(&outcome);
        match outcome {
            Outcome::Succeeded { result } => {
                let job = Job {
                    result,
                    failure: None,
                    ..job
                };
                self.finish(delivery, lease, job, State::Succeeded).await?;
            }
            Outcome::Refused { result, reason } => {
                let job = Job {
                    result,
                    refusal: reason,
                    failure: None,
                    ..job
                };
                self.finish(delivery, lease, job, State::Succeeded).await?;
            }
            Outcome::Cancelled => {
                // It distinguishes the job from a withdrawn one. The request may have come after
                // the claim.
                let job = Job {
                    cancel_requested: true,
                    ..job
                };
                self.finish(delivery, lease, job, State::Cancelled).await?;
            }
            Outcome::Withdrawn(error) => {
                let job = Job {
                    failure: Some(Failure::from(&error)),
                    ..job
                };
                self.finish(delivery, lease, job, State::Cancelled).await?;
            }
            Outcome::Failed(error) => self.fail(delivery, lease, job, &error).await?,
            Outcome::HandBack => {
                self.requeue(lease, |_| {}).await?;
                self.jobs.bus().answer(&delivery.reply, "-NAK").await?;
            }
            Outcome::LeaseLost => {
                // If the job has no new holder yet, the next worker should not count this one as
                // lost.
                if let Err(error) = self.requeue(lease, |_| {}).await {
                    tracing::debug!(error = error.chain(), "the job is somebody else's");
                }
                lease.lose();
            }
        }
        tracing::info!(outcome = name, "job attempt ended");
        Ok(())
    }

    async fn fail(
        &self,
        delivery: &Delivery,
        lease: &Lease,
        mut job: Job,
        error: &Error,
    ) -> Result<()> {
        tracing::warn!(error = error.chain(), "job attempt failed");
        // The record's count, because a checkpoint may have reset it since the claim.
        if let Some((record, _)) = self.jobs.record(lease.job()).await? {
            job.attempts = record.job.attempts;
        }
        job.attempts += 1;
        job.failure = Some(Failure::from(error));
        if !error.class().retryable() || job.attempts >= MAX_ATTEMPTS {
            return self.finish(delivery, lease, job, State::Failed).await;
        }
        let (attempts, written) = (job.attempts, job.failure.clone());
        let delay = self.jobs.bus().config().retry_delay(attempts);
        let wait = next_attempt(attempts, delay);
        self.requeue(lease, |job| {
            job.attempts = attempts;
            job.failure.clone_from(&written);
            job.wait = Some(wait.clone());
        })
        .await?;
        self.jobs.bus().answer(&delivery.reply, &nak(delay)).await
    }

    /// Puts the record back into the queue, if it is still ours.
    async fn requeue(&self, lease: &Lease, change: impl Fn(&mut Job)) -> Result<()> {
        let id = lease.job();
        loop {
            let Some((mut record, revision)) = self.jobs.record(id).await? else {
                return Ok(());
            };
            if record.job.fence != lease.fence() || record.job.state != State::Running {
                return Err(Error::new(
                    Class::Aborted,
                    format!("the lease of job {id} is lost"),
                ));
            }
            record.job.state = State::Queued;
            record.job.worker.clear();
            record.job.wait = None;
            change(&mut record.job);
            match self
                .jobs
                .bus()
                .jobs()
                .update(id.as_str(), record.to_bytes()?, revision)
                .await
            {
                Ok(_) => return Ok(()),
                Err(error) if error.class() == Class::Aborted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes the end to the store first, then to the record, the event and the answer. The next
    /// worker or reconciliation completes an interrupted end.
    async fn finish(
        &self,
        delivery: &Delivery,
        lease: &Lease,
        job: Job,
        state: State,
    ) -> Result<()> {
        let job = Job {
            fence: lease.fence(),
            ..job
        };
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
        let ended = loop {
            let decided = match lease.check().await {
                Ok(()) => self.jobs.finish(job.clone(), state).await,
                Err(error) if error.class() == Class::Aborted => {
                    tracing::warn!("the lease was lost before the end was written");
                    return Ok(());
                }
                Err(error) => Err(error),
            };
            let error = match decided {
                Ok(ended) => break ended,
                // Waiting helps only with an error that can pass.
                Err(error) if !can_pass(error.class()) => return Err(error),
                Err(error) => error,
            };
            tracing::warn!(error = error.chain(), "the job's end cannot be written yet");
            lease
                .waits_for(&Wait::new("the object store", error.message()))
                .await;
            if !backoff.wait(&self.context.stopper).await {
                return Err(error);
            }
        };
        self.jobs.settle(&ended).await?;
        self.jobs.say_outcome(&ended).await?;
        self.jobs.bus().answer(&delivery.reply, "+ACK").await
    }
}

fn next_attempt(attempts: u32, delay: Duration) -> Wait {
    let seconds = delay.as_secs_f64();
    let reason =
        format!("{attempts} of {MAX_ATTEMPTS} have failed; it begins {seconds:.0} s after");
    Wait::new("the next attempt", reason)
}

/// Whether the same write may succeed later without another attempt at the job.
fn can_pass(class: Class) -> bool {
    class.retryable() && class != Class::Internal
}

fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded { .. } => "succeeded",
        Outcome::Refused { .. } => "refused",
        Outcome::Failed(_) => "failed",
        Outcome::HandBack => "handed back",
        Outcome::Cancelled => "cancelled",
        Outcome::Withdrawn(_) => "withdrawn",
        Outcome::LeaseLost => "lease lost",
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a word")
}
