//! `togi-trainer`: the trainer as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    togi_runtime::process::main(
        "togi-trainer",
        togi_trainer::Config::load,
        togi_trainer::start,
    )
}
