//! Follows jobs to their end, over connections that may break.

use std::time::{Duration, Instant};

use togi_proto::dataprep::v1::WatchPreparationRequest;
use togi_proto::job::v1::Job;
use togi_proto::trainer::v1::watch_job_response::Update;
use togi_proto::trainer::v1::{WatchJobRequest, WatchJobResponse};
use togi_trainer::learn::step::Step;

use crate::client::{is_final, succeeded};
use crate::commands::job_lines;
use crate::error::Result;
use crate::progress::Unit;
use crate::session::Session;

/// How long a service may be unreachable before the follower gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// Tolerates transient failures until [`PATIENCE`] has passed since the last message.
#[derive(Debug)]
struct Patience {
    last_sign: Instant,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            last_sign: Instant::now(),
        }
    }
}

impl Patience {
    /// Records that a message came.
    fn renew(&mut self) {
        self.last_sign = Instant::now();
    }

    /// Pauses before the next try.
    ///
    /// # Errors
    /// The outcome's, if it is permanent or the patience is used up.
    async fn bear(&mut self, outcome: Result<()>) -> Result<()> {
        if let Err(error) = outcome
            && (!error.is_passing() || self.last_sign.elapsed() > PATIENCE)
        {
            return Err(error);
        }
        // Also on success: a service that stops ends its streams without an error.
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

/// Follows a training job from a step on, with a progress bar. Passes every update to `seen` once;
/// returns the job in its final state and the steps.
pub(crate) async fn training(
    session: &Session,
    mut job: Job,
    from_step: u64,
    mut seen: impl FnMut(&WatchJobResponse) -> Result<()>,
) -> Result<(Job, Vec<Step>)> {
    let mut progress = session.output.progress("training");
    let mut patience = Patience::default();
    let mut next = from_step.max(1);
    let mut steps: Vec<Step> = Vec::new();
    loop {
        let attempt = async {
            let request = WatchJobRequest {
                job: job.id.clone(),
                from_step: next,
            };
            let mut updates = session
                .clients
                .trainer()
                .await?
                .watch_job(request)
                .await?
                .into_inner();
            while let Some(response) = updates.message().await? {
                patience.renew();
                seen(&response)?;
                match response.update {
                    Some(Update::Step(step)) => {
                        next = step.step + 1;
                        progress.set_length(step.steps, Unit::Count);
                        progress.set(step.step, &job_lines::step(&step));
                        steps.push(step.into());
                    }
                    Some(Update::Job(update)) => {
                        if steps.is_empty() || update.wait.is_some() {
                            let position = steps.last().map_or(0, |step| step.step);
                            progress.set(position, &job_lines::waiting(&update));
                        }
                        job = update;
                    }
                    None => {}
                }
            }
            Ok(())
        };
        let outcome = attempt.await;
        // A stream that ended without an error after a final state has carried every step.
        if outcome.is_ok() && is_final(&job) {
            break;
        }
        patience.bear(outcome).await?;
    }
    progress.finish();
    Ok((job, steps))
}

/// Follows a preparation to its end, with a progress bar.
pub(crate) async fn prepare(session: &Session, mut job: Job) -> Result<Job> {
    let mut progress = session.output.progress("preparing");
    let mut patience = Patience::default();
    let mut reading = String::new();
    while !is_final(&job) {
        let attempt = async {
            let request = WatchPreparationRequest {
                job: job.id.clone(),
            };
            let mut updates = session
                .clients
                .data_prep()
                .await?
                .watch_preparation(request)
                .await?
                .into_inner();
            while let Some(update) = updates.message().await? {
                patience.renew();
                if update.bytes_total > 0 {
                    progress.set_length(update.bytes_total, Unit::Bytes);
                }
                job = update.job.unwrap_or(job.clone());
                let records = update.records_read;
                let message = if records > 0 && job.wait.is_none() {
                    format!("{records} records")
                } else {
                    job_lines::waiting(&job)
                };
                progress.set(update.bytes_read, &message);
                reading = update.reading;
            }
            Ok(())
        };
        let outcome = attempt.await;
        patience.bear(outcome).await?;
    }
    progress.finish();
    if !reading.is_empty() {
        session.output.say(reading);
    }
    Ok(job)
}

/// Follows a training job to its end and prints the result; as JSON, prints every update as a line.
pub(crate) async fn train(session: &Session, job: Job, from_step: u64) -> Result<()> {
    let output = &session.output;
    let seen = |update: &WatchJobResponse| {
        if output.is_json() {
            output.json(update)
        } else {
            Ok(())
        }
    };
    let (job, steps) = training(session, job, from_step, seen).await?;
    let job = succeeded(job)?;
    if let Some(ended) = job_lines::ended(&steps, &job) {
        output.say(ended);
    }
    if output.is_json() {
        Ok(())
    } else {
        output.lines(job_lines::fields(&job))
    }
}

/// Returns the sentence that tells how to follow a queued job later.
pub(crate) fn hint(job: &Job) -> String {
    format!("queued; follow it with `togi jobs watch {}`", job.id)
}
