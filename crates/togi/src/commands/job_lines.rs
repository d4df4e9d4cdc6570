//! Jobs, training steps and memory plans, written for people.

use togi_proto::events::v1::AdapterEvaluated;
use togi_proto::job::v1::{Job, JobKind, JobState};
use togi_proto::trainer::v1::{CreateJobRequest, MemoryPlan, Step};
use togi_trainer::learn::losses;

use crate::progress::{mebibytes, seconds};
use crate::{table, when};

/// Writes a job for people.
pub(crate) fn fields(job: &Job) -> Vec<String> {
    let attempts = if job.attempts == 0 {
        String::new()
    } else {
        job.attempts.to_string()
    };
    let ahead = if job.queue_position == 0 {
        String::new()
    } else {
        format!("{} ahead", job.queue_position)
    };
    table::fields(&[
        ("job", job.id.clone()),
        ("kind", kind(job).to_owned()),
        ("state", state(job)),
        ("queue", ahead),
        ("waits for", wait(job)),
        ("result", job.result.clone()),
        ("refusal", job.refusal.clone()),
        ("error", failure(job)),
        ("failed attempts", attempts),
        ("worker", job.worker.clone()),
        ("created", when::local(job.create_time.as_ref())),
        ("started", when::local(job.start_time.as_ref())),
        ("ended", when::local(job.end_time.as_ref())),
        (
            "took",
            when::between(job.start_time.as_ref(), job.end_time.as_ref()),
        ),
    ])
}

/// Writes a training job's request.
pub(crate) fn request(request: &CreateJobRequest) -> Vec<String> {
    let recipe = request.recipe.as_ref();
    table::fields(&[
        ("policy", request.policy.clone()),
        ("base", request.base.clone()),
        ("dataset", request.dataset.clone()),
        (
            "recipe",
            recipe.map(|recipe| recipe.name.clone()).unwrap_or_default(),
        ),
        ("alias", request.alias.clone()),
    ])
}

/// Writes the gate's verdict.
pub(crate) fn evaluation(evaluation: &AdapterEvaluated) -> Vec<String> {
    let word = if evaluation.passed {
        "passed"
    } else {
        "refused"
    };
    table::fields(&[
        ("gate", word.to_owned()),
        ("reason", evaluation.reason.clone()),
        ("generation", evaluation.generation.clone()),
        ("beside", evaluation.serving.clone()),
    ])
}

pub(crate) fn failure(job: &Job) -> String {
    job.error
        .as_ref()
        .map(|error| format!("{} {}", error.code, error.message))
        .unwrap_or_default()
}

pub(crate) fn kind(job: &Job) -> &'static str {
    match job.kind() {
        JobKind::Prepare => "prepare",
        JobKind::Train => "train",
        JobKind::Unspecified => "",
    }
}

pub(crate) fn state(job: &Job) -> String {
    let state = match job.state() {
        JobState::Queued => "queued",
        JobState::Running => "running",
        // A refused adapter is not served, which matters more than the job's success.
        JobState::Succeeded if !job.refusal.is_empty() => "refused",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
        JobState::Unspecified => "",
    };
    let ending = job.cancel_requested && job.state() == JobState::Running;
    if ending {
        "cancelling".to_owned()
    } else {
        state.to_owned()
    }
}

/// Writes a memory plan for people.
pub(crate) fn plan(plan: &MemoryPlan, steps: u64) -> Vec<String> {
    let parts = [
        ("weights", plan.weights_bytes),
        ("LoRA", plan.lora_bytes),
        ("optimizer", plan.optimizer_bytes),
        ("activations", plan.activations_bytes),
    ];
    let parts = parts
        .map(|(name, bytes)| format!("{name} {}", mebibytes(bytes)))
        .join(" + ");
    let available = match plan.available_bytes {
        0 => String::new(),
        bytes => format!(" of {}", mebibytes(bytes)),
    };
    vec![
        format!(
            "plan: {steps} steps of at most {} tokens at once, {}{available} of {}'s memory",
            plan.tokens,
            mebibytes(plan.total_bytes),
            plan.device
        ),
        format!("      {parts}"),
    ]
}

/// Returns what a job waits for, why and since when; empty if for nothing.
pub(crate) fn wait(job: &Job) -> String {
    let Some(wait) = &job.wait else {
        return String::new();
    };
    let since = when::local(wait.since.as_ref());
    format!("{}: {}, since {since}", wait.part, wait.reason)
}

/// Returns why a job makes no progress yet.
pub(crate) fn waiting(job: &Job) -> String {
    let wait = wait(job);
    if !wait.is_empty() && job.queue_position == 0 {
        return format!("waits for {wait}");
    }
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
pub(crate) fn step(step: &Step) -> String {
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
    let gpu: String = [busy, power, memory].into_iter().flatten().collect();
    format!(
        "loss {:.4}  {:.0} tokens/s{gpu}{left}",
        step.loss, step.tokens_per_second
    )
}

/// Summarises a finished training; nothing without a step. The loss is that of the last tenth of
/// the steps, because a single one is a few records.
pub(crate) fn ended(steps: &[togi_trainer::learn::step::Step], job: &Job) -> Option<String> {
    let (last, mean) = (steps.last()?, losses::last_tenth(steps)?);
    let whole = steps
        .iter()
        .map(|step| step.records)
        .max()
        .unwrap_or_default();
    let ragged = |word: &str| {
        if last.records < whole {
            format!(", {word}of {} records instead of {whole}", last.records)
        } else {
            String::new()
        }
    };
    let elapsed = match (&job.start_time, &job.end_time) {
        (Some(start), Some(end)) => {
            let span =
                (end.seconds - start.seconds) as f64 + f64::from(end.nanos - start.nanos) / 1e9;
            format!(" in {}", seconds(span))
        }
        _ => String::new(),
    };
    let of = match mean.steps {
        1 => format!("the last step{}", ragged("")),
        steps => format!("mean of the last {steps} steps{}", ragged("the last ")),
    };
    Some(format!(
        "{} steps{elapsed}, last loss {:.4} ({of}), {} tokens",
        last.step, mean.loss, last.tokens
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_loss_is_a_mean_that_says_of_what() {
        let line = |step: u64, loss, records| togi_trainer::learn::step::Step {
            step,
            loss,
            records,
            tokens: 10 * step,
            ..Default::default()
        };
        let mut steps: Vec<_> = (1..=19).map(|step| line(step, 2.0, 8)).collect();
        let job = Job::default();
        let says = "19 steps, last loss 2.0000 (mean of the last 2 steps), 190 tokens";
        assert_eq!(ended(&steps, &job).unwrap(), says);
        steps.push(line(20, 4.0, 2));
        let says = "20 steps, last loss 2.4000 (mean of the last 2 steps, the last of 2 records \
                    instead of 8), 200 tokens";
        assert_eq!(ended(&steps, &job).unwrap(), says);
        let short = [line(1, 2.0, 8), line(2, 3.0, 5)];
        let says =
            "2 steps, last loss 3.0000 (the last step, of 5 records instead of 8), 20 tokens";
        assert_eq!(ended(&short, &job).unwrap(), says);
        assert_eq!(ended(&[], &job), None);
    }

    #[test]
    fn gpu_figures_are_shown_where_there_are_some() {
        let mut step = Step {
            step: 1,
            steps: 1,
            loss: 2.5,
            tokens_per_second: 100.0,
            ..Default::default()
        };
        assert_eq!(super::step(&step), "loss 2.5000  100 tokens/s");
        step.gpu_utilization_percent = Some(97.0);
        step.gpu_power_watts = Some(640.4);
        step.gpu_memory_bytes = Some(3 << 29);
        let says = "loss 2.5000  100 tokens/s  GPU 97 %  640 W  1.5 GiB";
        assert_eq!(super::step(&step), says);
    }
}
