//! `togi train`: a data set in, an adapter out.

mod local;

use std::path::PathBuf;

use clap::Args;
use togi_proto::{
    job::v1::Job,
    trainer::v1::{CreateJobRequest, CreateJobResponse, MemoryPlan, Step, WatchJobResponse},
};

use super::{Session, jobs, watch};
use crate::{
    client::{present, succeeded},
    embedded,
    error::Result,
    local::on_thread,
    progress::{mebibytes, seconds},
    recipe,
};

const EXAMPLES: &str = "\
Examples:
  togi train --recipe demo-cpu --dataset mine --alias mine
  togi train --recipe my-recipe.toml --base rinna --dataset dolly-ja --alias dolly --no-watch
  togi train --recipe demo-cpu --dataset mine --alias mine --dry-run      only check and plan the memory
  togi train --recipe demo-cpu --dataset mine --alias mine --watch -o json | jq .step.loss
  togi train --local --recipe my-recipe.toml --base models/mine --records records.jsonl --out adapters/mine";

/// The command's words.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub struct Train {
    /// A recipe's file, or one of demo-cpu, rinna-3.6b-article, rinna-3.6b-a100, rinna-3.6b-bf16
    #[arg(long, short, value_name = "FILE")]
    pub recipe: PathBuf,
    /// The base, by its name in the trainer's configuration; with --local its folder
    #[arg(long, value_name = "NAME", default_value = embedded::BASE)]
    pub base: String,
    /// A data set's name, for its newest revision, or its digest
    #[arg(long, short, value_name = "NAME", required_unless_present = "local")]
    pub dataset: Option<String>,
    /// The alias that the adapter is promoted to
    #[arg(long, short, value_name = "NAME", required_unless_present = "local")]
    pub alias: Option<String>,
    /// The same key and request is the same job for ever
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Follows the job to its end [default: on a terminal]
    #[arg(long, conflicts_with = "no_watch")]
    pub watch: bool,
    /// Queues the job and returns [default: elsewhere]
    #[arg(long)]
    pub no_watch: bool,
    /// Only checks the request and plans its memory
    #[arg(long)]
    pub dry_run: bool,
    /// What a training without services needs.
    #[command(flatten)]
    pub local: local::Local,
}

impl Train {
    /// Runs the command.
    pub(super) async fn run(self, session: &Session) -> Result<()> {
        let output = &session.output;
        if self.local.local {
            let training = local::Training {
                recipe: self.recipe,
                base: self.base.into(),
                device: session.settings.device,
                words: self.local,
            };
            let output = output.clone();
            return on_thread(move || training.work(&output)).await;
        }
        let request = CreateJobRequest {
            base: self.base,
            dataset: self.dataset.unwrap_or_default(),
            recipe: Some(recipe::recipe(&self.recipe)?),
            alias: self.alias.unwrap_or_default(),
            idempotency_key: self.idempotency_key.unwrap_or_default(),
            validate_only: self.dry_run,
            ..CreateJobRequest::default()
        };
        let answer = session
            .clients
            .trainer()
            .await?
            .create_job(request)
            .await?
            .into_inner();
        if let Some(plan) = &answer.plan {
            output.say(plan_lines(plan, answer.steps).join("\n"));
        }
        if self.dry_run {
            return output.one(&answer, |answer| {
                vec![format!("the request is good: {} steps", answer.steps)]
            });
        }
        if self.watch || !self.no_watch && output.is_interactive() {
            watch_from_start(session, answer).await
        } else {
            leave(session, &answer)
        }
    }
}

/// Follows a job that was just accepted.
pub(super) async fn watch_from_start(session: &Session, answer: CreateJobResponse) -> Result<()> {
    let job = present(answer.job, "job")?;
    session.output.say(format_args!("job {}", job.id));
    follow(session, job, 1).await
}

/// Says how to follow a job that was just accepted.
pub(super) fn leave(session: &Session, answer: &CreateJobResponse) -> Result<()> {
    let job = present(answer.job.as_ref(), "job")?;
    session.output.say(format_args!(
        "queued; follow it with `togi jobs watch {}`",
        job.id
    ));
    session.output.one(answer, |answer| {
        answer.job.as_ref().map(jobs::fields).unwrap_or_default()
    })
}

/// Follows a job to its end and says what it made; with JSON every update is a line.
pub(crate) async fn follow(session: &Session, job: Job, from_step: u64) -> Result<()> {
    let output = &session.output;
    let seen = |update: &WatchJobResponse| {
        if output.is_json() {
            output.json(update)
        } else {
            Ok(())
        }
    };
    let (job, last) = watch::training(session, job, from_step, seen).await?;
    let job = succeeded(job)?;
    if let Some(step) = &last {
        output.say(ended(step, &job));
    }
    if output.is_json() {
        Ok(())
    } else {
        output.lines(jobs::fields(&job))
    }
}

/// Says how training ended.
pub(crate) fn ended(step: &Step, job: &Job) -> String {
    let elapsed = match (&job.start_time, &job.end_time) {
        (Some(start), Some(end)) => {
            let span =
                (end.seconds - start.seconds) as f64 + f64::from(end.nanos - start.nanos) / 1e9;
            format!(" in {}", seconds(span))
        }
        _ => String::new(),
    };
    format!(
        "{} steps{elapsed}, last loss {:.4}, {} tokens",
        step.step, step.loss, step.tokens
    )
}

/// Writes a memory plan for people.
pub(crate) fn plan_lines(plan: &MemoryPlan, steps: u64) -> Vec<String> {
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
