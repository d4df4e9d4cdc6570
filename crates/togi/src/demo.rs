//! The demonstration: the whole pipeline once on the embedded base, with scores that a test can
//! assert.
//!
//! Records become a data set, an adapter is trained and served, held-out questions are put to the
//! base and to the adapter; then ten new facts come in, a policy retrains, and the second
//! generation answers what the first could not.

pub mod command;
mod journal;
mod quiz;
mod report;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use togi_model::DeviceName;
use togi_proto::dataprep::v1::{
    Dataset, PrepareRequest, PrepareSettings, RecordSource, TokenizerSource, record_source,
    tokenizer_source,
};
use togi_proto::inference::v1::ListAdaptersRequest;
use togi_proto::job::v1::{Job, JobKind};
use togi_proto::trainer::v1::{ApplyPolicyRequest, CreateJobRequest, Policy, Recipe};
use togi_runtime::Stopper;
use togi_trainer::learn::step::Step;

use self::journal::Journal;
use crate::client::{present, succeeded};
use crate::commands::train::remote;
use crate::commands::{job_lines, prepare, watch};
use crate::error::{Error, Result};
use crate::output::Output;
use crate::progress::seconds;
use crate::session::Session;
use crate::up::Running;
use crate::{embedded, recipe, up};

pub use self::report::{Answered, Report};

/// Name of the data set and of the alias.
const NAME: &str = "demo";
const POLICY: &str = "retrain-demo";
/// The share of the records that the policy's gate measures on. It contains none of the new facts.
const VALIDATION_SHARE: f64 = 0.05;
/// How long the policy and inference may take to react.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Runs the demonstration in its own data folder and reports progress on standard error. Everything
/// has stopped when it returns.
///
/// # Errors
/// The first failure. Scores below their bars are not an error here; see [`Report::check`].
pub async fn run(
    output: &Output,
    data: &Path,
    device: DeviceName,
    stopper: Stopper,
) -> Result<Report> {
    let started = Instant::now();
    let options = up::Options {
        device,
        ..up::Options::in_folder(data)
    };
    let waiting = output.progress("starting data-prep, trainer, inference and NATS");
    let running = tokio::select! {
        running = up::start(options, stopper.clone()) => running?,
        () = stopper.stopped() => {
            stopper.released().await;
            return Err(Error::Interrupted(String::new()));
        }
    };
    if running.ready().await {
        waiting.finish();
        let took = seconds(started.elapsed().as_secs_f64());
        output.say(format_args!(
            "everything runs at {} ({took})",
            running.state().endpoint
        ));
    }
    let outcome = tokio::select! {
        report = show(output, &running) => report,
        () = stopper.stopped() => Err(Error::Interrupted(String::new())),
    };
    let stopped = running.stop().await;
    let mut report = outcome?;
    stopped?;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// The demonstration over running services.
async fn show(output: &Output, running: &Running) -> Result<Report> {
    let journal = Journal::start(running.context()).await?;
    let stage = Stage {
        session: Session::at(&running.state().endpoint, output.clone()),
        journal: &journal,
    };
    let mut report = Report::default();

    let dataset = stage.prepare(embedded::records()).await?;
    let rows = dataset.rows;
    output.say(format_args!(
        "data set {NAME}, revision {}: {rows} records",
        dataset.revision
    ));
    let questions = embedded::questions()?;
    let base = stage.ask("asking the base", "", &questions).await?;
    let first = stage.train().await?;
    stage.served(&first.result).await?;
    let adapter = stage.ask("asking the adapter", NAME, &questions).await?;
    report.answers = report::side_by_side(&questions, base, adapter);
    report.generations.push(first.result.clone());

    let news = embedded::new_questions()?;
    let before = stage.ask("asking about new facts", NAME, &news).await?;
    stage.apply_policy().await?;
    let dataset = stage.prepare(embedded::records_with_new_facts()).await?;
    output.say(format_args!(
        "data set {NAME}, revision {}: {} records, the new facts among them; now the policy \
         retrains automatically",
        dataset.revision, dataset.rows
    ));
    let second = stage.retrained(&first).await?;
    stage.served(&second).await?;
    let after = stage.ask("asking again", NAME, &news).await?;
    report.news = report::side_by_side(&news, before, after);
    report.generations.push(second);

    report.events = journal.counts();
    let objects = running.context().store.list(&"".into()).await?;
    report.objects = objects.len() as u64;
    report.bytes = objects.iter().map(|object| object.size).sum();
    Ok(report)
}

/// The running services, as the demonstration uses them.
struct Stage<'a> {
    session: Session,
    journal: &'a Journal,
}

impl Stage<'_> {
    /// Prepares the next revision of the data set.
    async fn prepare(&self, records: Bytes) -> Result<Dataset> {
        let upload = crate::upload::bytes(&self.session.clients, records).await?;
        let request = PrepareRequest {
            name: NAME.into(),
            records: Some(RecordSource {
                source: Some(record_source::Source::Upload(upload)),
                ..RecordSource::default()
            }),
            tokenizer: Some(TokenizerSource {
                source: Some(tokenizer_source::Source::Base(embedded::BASE.into())),
            }),
            settings: Some(PrepareSettings {
                learn: "answer".into(),
                validation_share: Some(VALIDATION_SHARE),
                ..PrepareSettings::default()
            }),
            ..PrepareRequest::default()
        };
        let mut client = self.session.clients.data_prep().await?;
        let job = present(client.prepare(request).await?.into_inner().job, "job")?;
        let job = succeeded(watch::prepare(&self.session, job).await?)?;
        prepare::made(&self.session, NAME, &job).await
    }

    /// Trains the first generation.
    async fn train(&self) -> Result<Job> {
        let request = CreateJobRequest {
            base: embedded::BASE.into(),
            dataset: NAME.into(),
            recipe: Some(demo_recipe()?),
            alias: NAME.into(),
            ..CreateJobRequest::default()
        };
        let answer = remote::create(&self.session, request).await?;
        let (job, steps) =
            watch::training(&self.session, present(answer.job, "job")?, 1, |_| Ok(())).await?;
        self.trained(job, &steps)
    }

    fn trained(&self, job: Job, steps: &[Step]) -> Result<Job> {
        let job = succeeded(job)?;
        if let Some(ended) = job_lines::ended(steps, &job) {
            self.session.output.say(format_args!("trained: {ended}"));
        }
        Ok(job)
    }

    /// Waits until inference serves a generation under the alias.
    async fn served(&self, generation: &str) -> Result<()> {
        let since = Instant::now();
        let progress = self
            .session
            .output
            .progress("waiting until inference serves it");
        let mut client = self.session.clients.inference().await?;
        loop {
            let answer = client
                .list_adapters(ListAdaptersRequest {})
                .await?
                .into_inner();
            if answer
                .adapters
                .iter()
                .any(|served| served.alias == NAME && served.generation == generation)
            {
                break;
            }
            if let Some(refused) = answer
                .rejected
                .iter()
                .find(|refused| refused.generation == generation)
            {
                return Err(Error::Failed(format!(
                    "inference refused the adapter: {}",
                    refused.reason
                )));
            }
            if since.elapsed() > PATIENCE {
                return Err(Error::Failed(
                    "inference does not serve the adapter that was promoted".into(),
                ));
            }
            tokio::time::sleep(POLL).await;
        }
        progress.finish();
        let short = crate::table::shorten(generation, 13);
        let waited = seconds(since.elapsed().as_secs_f64());
        self.session.output.say(format_args!(
            "generation {short} is promoted and served ({waited} after its training)"
        ));
        Ok(())
    }

    /// Asks every question greedily. Repeated n-grams are allowed, because an answer may repeat a
    /// name from the question.
    async fn ask(
        &self,
        what: &str,
        adapter: &str,
        questions: &[embedded::Question],
    ) -> Result<Vec<String>> {
        quiz::ask(&self.session, what, adapter, questions).await
    }

    /// Applies the policy: a new revision of the data set is trained and promoted.
    async fn apply_policy(&self) -> Result<()> {
        let policy = Policy {
            name: POLICY.into(),
            dataset: NAME.into(),
            base: embedded::BASE.into(),
            recipe: Some(demo_recipe()?),
            alias: NAME.into(),
            ..Policy::default()
        };
        let request = ApplyPolicyRequest {
            policy: Some(policy),
        };
        self.session
            .clients
            .policies()
            .await?
            .apply_policy(request)
            .await?;
        self.session.output.say(
            "policy applied: when the data set has a new revision, train, and promote what is not \
             worse",
        );
        Ok(())
    }

    /// Follows the policy's jobs until one makes a new generation; returns the generation.
    async fn retrained(&self, first: &Job) -> Result<String> {
        let mut known = vec![first.id.clone()];
        loop {
            let id = self.journal.train_job_beside(&known, PATIENCE).await?;
            known.push(id.clone());
            let job = Job {
                id,
                kind: JobKind::Train.into(),
                ..Job::default()
            };
            let (job, last) = watch::training(&self.session, job, 1, |_| Ok(())).await?;
            let job = self.trained(job, last.as_ref())?;
            // The policy may first train on the old revision; the same data gives the same
            // generation.
            if job.result != first.result {
                return Ok(job.result);
            }
        }
    }
}

fn demo_recipe() -> Result<Recipe> {
    recipe::recipe(&PathBuf::from("demo-cpu"))
}
