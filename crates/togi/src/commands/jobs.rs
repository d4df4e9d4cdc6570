//! `togi jobs`: lists, shows, follows and cancels jobs.

use clap::{Args, Subcommand};
use togi_proto::dataprep::v1::{CancelPreparationRequest, GetPreparationRequest};
use togi_proto::job::v1::{JobKind, JobState};
use togi_proto::trainer::v1::{CancelJobRequest, GetJobRequest, ListJobsRequest, ListJobsResponse};

use crate::client::{PAGE_SIZE, present, succeeded};
use crate::commands::{job_lines, watch};
use crate::error::{Error, Result};
use crate::session::Session;
use crate::table::{Table, shorten};
use crate::when;

/// What to do with jobs.
#[derive(Debug, Subcommand)]
pub enum Jobs {
    /// Lists training jobs, newest first
    #[command(
        before_help = "Examples:\n  togi jobs list\n  togi jobs list -o json | jq '.jobs[].id'"
    )]
    List,
    /// Shows a job
    #[command(before_help = "Examples:\n  togi jobs show 3f9c")]
    Show(One),
    /// Follows a job to its end
    #[command(
        before_help = "Examples:\n  togi jobs watch 3f9c\n  togi jobs watch 3f9c --from-step 100 -o json"
    )]
    Watch(Watch),
    /// Cancels a job
    #[command(before_help = "Examples:\n  togi jobs cancel 3f9c")]
    Cancel(One),
}

/// Names a job.
#[derive(Debug, Args)]
pub struct One {
    /// The job's id, or at least 4 of its first characters
    pub job: String,
}

/// Names a job to follow.
#[derive(Debug, Args)]
pub struct Watch {
    /// The job's id, or at least 4 of its first characters
    pub job: String,
    /// The first training step to show
    #[arg(long, value_name = "STEP", default_value_t = 1)]
    pub from_step: u64,
}

impl Jobs {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::List => list(session).await,
            Self::Show(one) => show(session, one.job).await,
            Self::Watch(from) => follow(session, from).await,
            Self::Cancel(one) => cancel(session, one.job).await,
        }
    }
}

async fn list(session: &Session) -> Result<()> {
    let mut client = session.clients.trainer().await?;
    let mut all = ListJobsResponse::default();
    loop {
        let request = ListJobsRequest {
            page_size: PAGE_SIZE,
            page_token: all.next_page_token,
        };
        let page = client.list_jobs(request).await?.into_inner();
        all.jobs.extend(page.jobs);
        all.next_page_token = page.next_page_token;
        if all.next_page_token.is_empty() {
            break;
        }
    }
    if all.jobs.is_empty() {
        session.output.say("no jobs yet");
    }
    session.output.one(&all, |all| {
        let mut table = Table::new(&["JOB", "KIND", "STATE", "AGE", "TOOK", "RESULT"]);
        for job in &all.jobs {
            let result = if !job.result.is_empty() {
                shorten(&job.result, 17)
            } else if job.wait.is_some() {
                job_lines::waiting(job)
            } else {
                job_lines::failure(job)
            };
            let age = when::age(job.create_time.as_ref());
            let took = when::between(job.start_time.as_ref(), job.end_time.as_ref());
            table.row([
                job.id.clone(),
                job_lines::kind(job).into(),
                job_lines::state(job),
                age,
                took,
                result,
            ]);
        }
        table.lines()
    })
}

async fn show(session: &Session, id: String) -> Result<()> {
    let request = GetJobRequest { job: id.clone() };
    match session
        .clients
        .trainer()
        .await?
        .get_job(request)
        .await
        .map_err(Error::from)
    {
        Ok(answer) => session.output.one(&answer.into_inner(), |answer| {
            let mut lines = answer
                .job
                .as_ref()
                .map(job_lines::fields)
                .unwrap_or_default();
            if let Some(request) = &answer.request {
                lines.push(String::new());
                lines.extend(job_lines::request(request));
            }
            if let Some(evaluation) = &answer.evaluation {
                lines.push(String::new());
                lines.extend(job_lines::evaluation(evaluation));
            }
            lines
        }),
        Err(error) if error.is_not_found() => {
            let request = GetPreparationRequest { job: id };
            let answer = session
                .clients
                .data_prep()
                .await?
                .get_preparation(request)
                .await?
                .into_inner();
            session.output.one(&answer, |answer| {
                answer
                    .job
                    .as_ref()
                    .map(job_lines::fields)
                    .unwrap_or_default()
            })
        }
        Err(error) => Err(error),
    }
}

async fn follow(session: &Session, from: Watch) -> Result<()> {
    let job = session.clients.job(&from.job).await?;
    match job.kind() {
        JobKind::Prepare => {
            let job = succeeded(watch::prepare(session, job).await?)?;
            session.output.one(&job, job_lines::fields)
        }
        _ => watch::train(session, job, from.from_step).await,
    }
}

async fn cancel(session: &Session, id: String) -> Result<()> {
    let found = session.clients.job(&id).await?;
    let job = match found.kind() {
        JobKind::Prepare => {
            let request = CancelPreparationRequest { job: id };
            session
                .clients
                .data_prep()
                .await?
                .cancel_preparation(request)
                .await?
                .into_inner()
                .job
        }
        _ => {
            session
                .clients
                .trainer()
                .await?
                .cancel_job(CancelJobRequest { job: id })
                .await?
                .into_inner()
                .job
        }
    };
    let job = present(job, "job")?;
    session.output.say(match job.state() {
        JobState::Cancelled => "cancelled",
        _ => "its worker was asked to stop; the state changes when it has",
    });
    session.output.one(&job, job_lines::fields)
}
