//! `togi run`: a whole pipeline in one call, for CI, over its own services or running ones, with
//! report files and an exit code.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use clap::{Args, ValueEnum};
use togi_runtime::config::TelemetryConfig;
use togi_runtime::error::scrub;
use togi_runtime::{Stopper, telemetry};
use tokio::time::sleep;
use tracing::{Instrument as _, info_span};

use crate::commands::up::base;
use crate::error::{Error, Result};
use crate::pipeline::report::Report;
use crate::pipeline::{Pipeline, junit};
use crate::progress::seconds;
use crate::session::Session;
use crate::settings::{BaseSection, Settings};
use crate::up_state::UpState;
use crate::{table, up};

const EXAMPLES: &str = "\
Examples:
  togi run pipeline.toml
  togi run pipeline.toml --report json,junit --report-folder reports
  togi run pipeline.toml --nats nats://nats.example:4222 --store s3://models
  togi run pipeline.toml --endpoint http://togi.example:7670

A pipeline file, with paths relative to it:
  [prepare]                       # the options of `togi prepare`, with _ for -
  file = \"records.jsonl\"
  name = \"mine\"
  validation_share = 0.1          # held out for the gate
  [train]
  base = \"demo\"
  recipe = \"demo-cpu\"             # a name, a file, or the table [train.recipe]
  alias = \"mine\"
  [gate]                          # what the adapter must pass, as in a policy; left out: the defaults
  questions = \"questions.jsonl\"
  least_right = 0.8

It starts data-prep and trainer in this process, with a nats-server and a store in the folder --data,
unless --nats and --store name others, or services already run there or at --endpoint. The same
inputs and binary give the same generation. Exit code 5: the gate refused the adapter, and the alias
is unchanged.";

/// A form of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// togi-report.json
    Json,
    /// togi-report.xml, a test case a stage
    Junit,
}

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub struct Run {
    /// The pipeline
    pub pipeline: PathBuf,
    /// Reports to write, also of a run that fails: json, junit or both, with a comma
    #[arg(
        long,
        value_name = "FORMS",
        value_delimiter = ',',
        hide_possible_values = true
    )]
    pub report: Vec<Form>,
    /// Where reports go
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub report_folder: PathBuf,
    /// A further base for its own services: a folder's file:// URL, an object store's, or
    /// hf://OWNER/NAME; repeatable
    #[arg(long, value_name = "NAME=URL", value_parser = base)]
    pub base: Vec<(String, String)>,
    /// How long NATS and the store may take to answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub patience: u64,
}

impl Run {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let pipeline = Pipeline::read(&self.pipeline)?;
        // The reports are written at the end of a long run; a folder that cannot be created fails
        // now.
        if !self.report.is_empty() {
            let folder = &self.report_folder;
            fs::create_dir_all(folder).map_err(|error| Error::file(folder, error))?;
        }
        let logs = TelemetryConfig {
            log_filter: "error".to_owned(),
            ..session.settings.file.telemetry.clone()
        };
        let guard = telemetry::init(&logs, "togi")?;
        let mut report = Report::new(&pipeline.name);
        let work = self.work(session, &pipeline, &mut report);
        let outcome = work.instrument(info_span!("togi")).await;
        guard.flush().await;
        report.finish(&outcome);
        self.write(&report)?;
        session.output.one(&report, lines)?;
        outcome
    }

    async fn work(
        &self,
        session: &Session,
        pipeline: &Pipeline,
        report: &mut Report,
    ) -> Result<()> {
        let stopper = Stopper::on_signals().map_err(Error::Terminal)?;
        let settings = &session.settings;
        let running_here = settings.named_nats.is_none()
            && settings.named_store.is_none()
            && UpState::of_running(&settings.data).is_some();
        if settings.named_endpoint.is_some() || running_here {
            return interruptible(pipeline.run(session, report), &stopper).await;
        }
        let running = self.start(settings, &stopper).await?;
        let endpoint = running.state().endpoint.clone();
        let own = Session::at(&endpoint, session.output.clone());
        let outcome = if running.ready().await {
            interruptible(pipeline.run(&own, report), &stopper).await
        } else {
            Err(Error::Interrupted(String::new()))
        };
        let stopped = running.stop().await;
        outcome.and(stopped)
    }

    /// Starts this process's own services, unless NATS or the store do not answer in time. An
    /// abandoned start ends everything that it started.
    async fn start(&self, settings: &Settings, stopper: &Stopper) -> Result<up::Running> {
        let patience = Duration::from_secs(self.patience);
        let own = stopper.child();
        let mut starting = pin!(up::start(self.options(settings), own.clone()));
        let given_up = tokio::select! {
            running = &mut starting => return running,
            () = stopper.stopped() => Error::Interrupted(String::new()),
            () = sleep(patience) => no_answer(settings, patience),
        };
        own.stop();
        // It became ready at the last moment.
        if let Ok(running) = starting.await {
            running.stop().await?;
        }
        Err(given_up)
    }

    /// Returns the options of this process's own services, without inference.
    fn options(&self, settings: &Settings) -> up::Options {
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut file = settings.file.clone();
        file.store.url.clone_from(&settings.named_store);
        for (name, url) in self.base.clone() {
            let precision = None;
            file.bases.insert(name, BaseSection { url, precision });
        }
        up::Options {
            listen: anywhere,
            admin: anywhere,
            serve: None,
            nats: settings.named_nats.clone(),
            device: settings.device,
            file,
            ..up::Options::in_folder(&settings.data)
        }
    }

    fn write(&self, report: &Report) -> Result<()> {
        for form in &self.report {
            let (name, text) = match form {
                Form::Json => ("togi-report.json", json(report)?),
                Form::Junit => ("togi-report.xml", junit::xml(report)?),
            };
            let path = self.report_folder.join(name);
            fs::write(&path, text).map_err(|error| Error::file(&path, error))?;
        }
        Ok(())
    }
}

/// Runs the work until a signal comes.
async fn interruptible(work: impl Future<Output = Result<()>>, stopper: &Stopper) -> Result<()> {
    tokio::select! {
        done = work => done,
        () = stopper.stopped() => Err(Error::Interrupted(String::new())),
    }
}

/// Names the configured NATS and store: our own nats-server and folder always answer.
fn no_answer(settings: &Settings, patience: Duration) -> Error {
    let named = [
        ("NATS", &settings.named_nats),
        ("the store", &settings.named_store),
    ];
    let named = named.iter().filter_map(|(what, url)| {
        let url = scrub(url.as_deref()?);
        Some(format!("{what} at {url}"))
    });
    let named: Vec<_> = named.collect();
    let what = if named.is_empty() {
        "its own nats-server".to_owned()
    } else {
        named.join(" or ")
    };
    let after = seconds(patience.as_secs_f64());
    Error::Unavailable(format!("{what} does not answer, after {after}"))
}

fn json(report: &Report) -> Result<String> {
    let text =
        serde_json::to_string_pretty(report).map_err(|error| Error::Terminal(error.into()))?;
    Ok(text + "\n")
}

/// Writes the report for people.
fn lines(report: &Report) -> Vec<String> {
    let mut fields = vec![("pipeline", report.pipeline.clone())];
    for done in &report.stages {
        let outcome = format!("{:?}", done.outcome).to_lowercase();
        let took = seconds(done.seconds);
        fields.push((
            done.stage.name(),
            format!("{outcome} {took}").trim_end().to_owned(),
        ));
    }
    if let Some(dataset) = &report.dataset {
        fields.push(("dataset", dataset.digest.clone()));
    }
    if !report.generation().is_empty() {
        fields.push(("generation", report.generation().to_owned()));
    }
    if let Some(evaluation) = &report.evaluation {
        fields.push(("gate", evaluation.reason.clone()));
    }
    if let Some(alias) = &report.alias {
        fields.push((
            "alias",
            format!("{} revision {}", alias.name, alias.revision),
        ));
    }
    table::fields(&fields)
}
