//! `togi demo`: runs the demonstration and checks its scores.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use togi_runtime::{Stopper, telemetry};

use crate::demo;
use crate::error::{Error, Result};
use crate::session::Session;

const EXAMPLES: &str = "\
Examples:
  togi demo
  togi demo --keep demo-data        and look at what it made
  togi demo -o json | jq .events

It starts everything, prepares about 300 records, trains an adapter, asks base and adapter held-out
questions, adds ten new facts, and lets a policy retrain. It takes under three minutes on two cores
and needs no network.";

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub struct Demo {
    /// Keeps its data in this folder, which must be empty or missing [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

impl Demo {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let output = &session.output;
        let mut logs = session.settings.file.telemetry.clone();
        // The demonstration reports on standard error; the services' logs are hidden unless
        // configured.
        if logs.log_filter == togi_runtime::config::TelemetryConfig::default().log_filter {
            logs.log_filter = "error".to_owned();
        }
        let guard = telemetry::init(&logs, "togi")?;
        let stopper = Stopper::on_signals().map_err(Error::Terminal)?;
        let (folder, _temporary) = match &self.keep {
            Some(folder) => (must_be_empty(folder.clone())?, None),
            None => {
                let temporary = tempfile::Builder::new().prefix("togi-demo-").tempdir()?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let outcome = demo::run(output, &folder, session.settings.device, stopper).await;
        guard.flush().await;
        let report = outcome?;
        output.one(&report, |report| report.lines(output))?;
        report.check()?;
        output.say(match &self.keep {
            Some(folder) => format!(
                "\nall bars hold; everything is in {0}: `togi up --data {0}`",
                folder.display()
            ),
            None => "\nall bars hold; `togi up` starts the services to stay".to_owned(),
        });
        Ok(())
    }
}

fn must_be_empty(folder: PathBuf) -> Result<PathBuf> {
    match fs::read_dir(&folder).map(|mut entries| entries.next().is_some()) {
        Ok(true) => Err(Error::Usage(format!(
            "{} is not empty; --keep wants a new folder",
            folder.display()
        ))),
        _ => Ok(folder),
    }
}
