//! `togi-data-prep [--config FILE]...`: the service as a process of its own.

use std::process::ExitCode;

use togi_data_prep::Config;

fn main() -> ExitCode {
    togi_runtime::process::main("togi-data-prep", Config::load, togi_data_prep::start)
}
