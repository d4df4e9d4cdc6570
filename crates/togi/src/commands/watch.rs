//! Following jobs over connections that may break: patience, and what to say meanwhile.

use std::time::{Duration, Instant};

use togi_proto::{
    job::v1::{Job, JobState},
    trainer::v1::{Step, WatchJobRequest, WatchJobResponse, watch_job_response::Update},
};

use super::Session;
use crate::{
    client::is_final,
    error::Result,
    progress::{Unit, mebibytes, seconds},
};

/// How long a service may be away before a follower gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// Bears failures that may pass, for a minute since the last sign of life.
#[derive(Debug)]
pub(crate) struct Patience {
    last_sign: Instant,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            last_sign: Instant::now(),
        }
    }
}

impl Patience {
    /// Notes a sign of life.
    pub(crate) fn renew(&mut self) {
        self.last_sign = Instant::now();
    }

    /// Passes on success and what will not pass; waits a little otherwise.
    pub(crate) async fn bear(&mut self, outcome: Result<()>) -> Result<()> {
        if let Err(error) = outcome
            && (!error.is_passing() || self.last_sign.elapsed() > PATIENCE)
        {
            return Err(error);
        }
        // Also after a stream that ended before the job did: a service that stops ends its streams in good order.
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

/// Follows a training job from a step on, with a progress bar; every update is given to `seen` once.
pub(crate) async fn training(
    session: &Session,
    mut job: Job,
    from_step: u64,
    mut seen: impl FnMut(&WatchJobResponse) -> Result<()>,
) -> Result<(Job, Option<Step>)> {
    let mut progress = session.output.progress("training");
    let mut patience = Patience::default();
    let mut next = from_step.max(1);
    let mut last: Option<Step> = None;
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
                        progress.set(step.step, &step_line(&step));
                        last = Some(step);
                    }
                    Some(Update::Job(update)) => {
                        if last.is_none() {
                            progress.set(0, &waiting(&update));
                        }
                        job = update;
                    }
                    None => {}
                }
            }
            Ok(())
        };
        let outcome = attempt.await;
        // A stream that ended in good order after a final state has told every step.
        if outcome.is_ok() && is_final(&job) {
            break;
        }
        patience.bear(outcome).await?;
    }
    progress.finish();
    Ok((job, last))
}

/// Says of a job that does not move yet why.
pub(crate) fn waiting(job: &Job) -> String {
    let error = job
        .error
        .as_ref()
        .map(|error| format!("attempt {} failed: {}", job.attempts, error.message));
    match (job.state(), job.queue_position) {
        (JobState::Queued, 0) => error.unwrap_or_else(|| "queued".to_owned()),
        (JobState::Queued, ahead) => format!("queued, {ahead} ahead"),
        _ => error.unwrap_or_default(),
    }
}

/// Writes the numbers of a step for people.
pub(crate) fn step_line(step: &Step) -> String {
    let left = seconds(step.seconds_left);
    let left = if left.is_empty() || step.step == step.steps {
        String::new()
    } else {
        format!("  {left} left")
    };
    let busy = step
        .gpu_utilization_percent
        .map(|percent| format!("  GPU {percent:.0} %"));
    let power = step.gpu_power_watts.map(|watts| format!("  {watts:.0} W"));
    let memory = step
        .gpu_memory_bytes
        .map(|bytes| format!("  {}", mebibytes(bytes)));
    let card = [busy, power, memory].into_iter().flatten();
    let card: String = card.collect();
    format!(
        "loss {:.4}  {:.0} tokens/s{card}{left}",
        step.loss, step.tokens_per_second
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cards_figures_are_told_where_there_is_one() {
        let mut step = Step {
            step: 1,
            steps: 1,
            loss: 2.5,
            tokens_per_second: 100.0,
            ..Default::default()
        };
        assert_eq!(step_line(&step), "loss 2.5000  100 tokens/s");
        step.gpu_utilization_percent = Some(97.0);
        step.gpu_power_watts = Some(640.4);
        step.gpu_memory_bytes = Some(3 << 29);
        let says = "loss 2.5000  100 tokens/s  GPU 97 %  640 W  1.5 GiB";
        assert_eq!(step_line(&step), says);
    }
}
