//! `togi-inference`: inference as a separate process.

use std::process::ExitCode;

fn main() -> ExitCode {
    togi_runtime::process::main(
        "togi-inference",
        togi_inference::Config::load,
        togi_inference::start,
    )
}
