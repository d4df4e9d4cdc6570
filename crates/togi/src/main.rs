//! The `togi` command: parses the command line, runs it, and exits with the error's code.

use std::process::ExitCode;

use togi::args::Args;
use togi::dispatch;
use togi::error::Error;
use togi::output::complain;

fn main() -> ExitCode {
    let args = match Args::read(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return end(&Error::Terminal(error)),
    };
    let outcome = runtime.block_on(dispatch::run(args));
    // A read of standard input cannot be cancelled, so the runtime does not wait for its thread.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => end(&error),
    }
}

fn end(error: &Error) -> ExitCode {
    if !matches!(error, Error::Closed) {
        complain(error);
    }
    ExitCode::from(error.exit_code())
}
