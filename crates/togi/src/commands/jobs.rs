//! `togi jobs`: lists, shows, follows and cancels jobs.

use clap::{Args, Subcommand};
use togi_proto::{
    dataprep::v1::{CancelPreparationRequest, GetPreparationRequest},
    events::v1::AdapterEvaluated,
    job::v1::{Job, JobKind, JobState},
    trainer::v1::{
        CancelJobRequest, CreateJobRequest, GetJobRequest, ListJobsRequest, ListJobsResponse,
    },
};

use super::{Session, prepare, train};
use crate::{
    client::{PAGE_SIZE, present, succeeded},
    error::{Error, Result},
    table::{self, Table, shorten},
    when,
};

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
    /// Ends a job that is not needed any more
    #[command(before_help = "Examples:\n  togi jobs cancel 3f9c")]
    Cancel(One),
}

/// Names a job.
#[derive(Debug, Args)]
pub struct One {
    /// The job's id
    pub job: String,
}

/// Names a job to follow.
#[derive(Debug, Args)]
pub struct Watch {
    /// The job's id
    pub job: String,
    /// The first training step wanted
    #[arg(long, value_name = "STEP", default_value_t = 1)]
    pub from_step: u64,
}

impl Jobs {
    /// Runs the command.
    pub(super) async fn run(self, session: &Session) -> Result<()> {
        match self {
            Jobs::List => list(session).await,
            Jobs::Show(one) => show(session, one.job).await,
            Jobs::Watch(watch) => follow(session, watch).await,
            Jobs::Cancel(one) => cancel(session, one.job).await,
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
            let result = if job.result.is_empty() {
                failure(job)
            } else {
                shorten(&job.result, 17)
            };
            let age = when::age(job.create_time.as_ref());
            let took = when::between(job.start_time.as_ref(), job.end_time.as_ref());
            table.row([
                job.id.clone(),
                kind(job).into(),
                state(job),
                age,
                took,
                result,
            ]);
        }
        if table.is_empty() {
            Vec::new()
        } else {
            table.lines()
        }
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
            let mut lines = answer.job.as_ref().map(fields).unwrap_or_default();
            if let Some(request) = &answer.request {
                lines.push(String::new());
                lines.extend(asked(request));
            }
            if let Some(evaluation) = &answer.evaluation {
                lines.push(String::new());
                lines.extend(evaluated(evaluation));
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
                answer.job.as_ref().map(fields).unwrap_or_default()
            })
        }
        Err(error) => Err(error),
    }
}

async fn follow(session: &Session, watch: Watch) -> Result<()> {
    let job = session.clients.job(&watch.job).await?;
    match job.kind() {
        JobKind::Prepare => {
            let job = succeeded(prepare::follow(session, job).await?)?;
            session.output.one(&job, fields)
        }
        _ => train::follow(session, job, watch.from_step).await,
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
    session.output.one(&job, fields)
}

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

/// Writes what was asked of a training job.
fn asked(request: &CreateJobRequest) -> Vec<String> {
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

/// Writes what its gate decided.
fn evaluated(evaluation: &AdapterEvaluated) -> Vec<String> {
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

fn failure(job: &Job) -> String {
    job.error
        .as_ref()
        .map(|error| format!("{} {}", error.code, error.message))
        .unwrap_or_default()
}

fn kind(job: &Job) -> &'static str {
    match job.kind() {
        JobKind::Prepare => "prepare",
        JobKind::Train => "train",
        JobKind::Unspecified => "",
    }
}

fn state(job: &Job) -> String {
    let state = match job.state() {
        JobState::Queued => "queued",
        JobState::Running => "running",
        // What somebody who looks wants to know: nobody is answered with it.
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
