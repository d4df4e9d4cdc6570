//! Training by the service: creates a job, then follows it or returns.

use clap::Args;
use togi_proto::trainer::v1::{CreateJobRequest, CreateJobResponse};
use togi_runtime::jobs::random_key;

use crate::client::present;
use crate::commands::{job_lines, watch};
use crate::error::{Error, Result};
use crate::session::Session;

/// Whether the command follows the job that it created.
#[derive(Clone, Copy, Debug, Args)]
pub struct Follow {
    /// Follows the job to its end [default: on a terminal]
    #[arg(long, conflicts_with = "no_watch")]
    pub watch: bool,
    /// Queues the job and returns [default: elsewhere]
    #[arg(long)]
    pub no_watch: bool,
}

impl Follow {
    /// Follows the job to its end, or prints how to do so later.
    pub(crate) async fn end(self, session: &Session, answer: CreateJobResponse) -> Result<()> {
        let output = &session.output;
        if self.watch || !self.no_watch && output.is_interactive() {
            let job = present(answer.job, "job")?;
            output.say(format_args!("job {}", job.id));
            return watch::train(session, job, 1).await;
        }
        let job = present(answer.job.as_ref(), "job")?;
        output.say(watch::hint(job));
        output.one(&answer, |answer| {
            answer
                .job
                .as_ref()
                .map(job_lines::fields)
                .unwrap_or_default()
        })
    }
}

/// Sends a request with a key of its own if it has none, so that it can be repeated.
pub(crate) async fn ask(
    session: &Session,
    mut request: CreateJobRequest,
) -> Result<CreateJobResponse> {
    if request.idempotency_key.is_empty() {
        request.idempotency_key = random_key()?;
    }
    let key = request.idempotency_key.clone();
    let mut trainer = session.clients.trainer().await?;
    let answer = trainer.create_job(request).await;
    let answer = answer.map_err(|status| Error::from(status).of_request(&key))?;
    Ok(answer.into_inner())
}

/// Creates a training job and prints its memory plan.
pub(crate) async fn create(
    session: &Session,
    request: CreateJobRequest,
) -> Result<CreateJobResponse> {
    let answer = ask(session, request).await?;
    if let Some(plan) = &answer.plan {
        let lines = job_lines::plan(plan, answer.steps);
        session.output.say(lines.join("\n"));
    }
    Ok(answer)
}
