//! Runs the command of a command line, with its session, its traces and its end by Ctrl-C.

use std::future::Future;

use togi_runtime::config::TelemetryConfig;
use togi_runtime::telemetry;
use tracing::{Instrument, info_span};

use crate::args;
use crate::args::{Args, Command};
use crate::error::{Error, Result};
use crate::session::Session;

/// Runs the command.
///
/// # Errors
/// The command's failure; [`Error::exit_code`] is the process's exit code.
pub async fn run(args: Args) -> Result<()> {
    // It needs no settings, and must work even if they are wrong.
    if let Command::Completions(completions) = &args.command {
        return completions.run(args::command());
    }
    let session = Session::open(&args.flags)?;
    match args.command {
        // These handle signals themselves.
        Command::Up(up) => up.run(&session).await,
        Command::Demo(demo) => demo.run(&session).await,
        Command::Run(run) => run.run(&session).await,
        command => {
            let hint = hint(&command);
            traced(until_interrupted(client(command, &session), hint), &session).await
        }
    }
}

async fn client(command: Command, session: &Session) -> Result<()> {
    match command {
        Command::Prepare(prepare) => prepare.run(session).await,
        Command::Train(train) => train.run(session).await,
        Command::Jobs(jobs) => jobs.run(session).await,
        Command::Datasets(datasets) => datasets.run(session).await,
        Command::Adapters(adapters) => adapters.run(session).await,
        Command::Policies(policies) => policies.run(session).await,
        Command::Generate(generate) => generate.run(session).await,
        Command::Ask(ask) => ask.run(session).await,
        Command::Chat(chat) => chat.run(session).await,
        Command::Events(events) => events.run(session).await,
        Command::Gc(gc) => gc.run(session).await,
        Command::Tokenize(tokenize) => tokenize.run(session).await,
        Command::Logits(logits) => logits.run(session).await,
        Command::Fetch(fetch) => fetch.run(session).await,
        Command::Quantize(quantize) => quantize.run(session).await,
        Command::Export(export) => export.run(session).await,
        Command::MakeBase(make_base) => make_base.run(session).await,
        Command::Up(_) | Command::Demo(_) | Command::Run(_) | Command::Completions(_) => Ok(()),
    }
}

/// Runs a client's work as the root of a trace that the services continue. Only errors are logged;
/// messages go to standard error.
async fn traced(work: impl Future<Output = Result<()>>, session: &Session) -> Result<()> {
    let telemetry = TelemetryConfig {
        // The hub's client logs the failures that the command reports itself.
        log_filter: "error,hf_hub=off".to_owned(),
        ..session.settings.file.telemetry.clone()
    };
    let guard = telemetry::init(&telemetry, "togi-cli")?;
    let outcome = work.instrument(info_span!("togi")).await;
    guard.flush().await;
    outcome
}

/// Runs a client's work until Ctrl-C; jobs in the services continue.
async fn until_interrupted(
    work: impl Future<Output = Result<()>>,
    hint: &'static str,
) -> Result<()> {
    tokio::select! {
        done = work => done,
        Ok(()) = tokio::signal::ctrl_c() => Err(Error::Interrupted(hint.to_owned())),
    }
}

/// Returns the sentence about what an interrupt does not end.
fn hint(command: &Command) -> &'static str {
    match command {
        Command::Train(train) if train.local.local => "",
        Command::Prepare(_) | Command::Train(_) | Command::Jobs(_) => {
            "; a job that is queued goes on, `togi jobs watch` follows it again"
        }
        _ => "",
    }
}
