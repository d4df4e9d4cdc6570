//! The command as people and scripts use it: the binary, its exit codes and streams, and `togi up`
//! around real services.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helper may fail as the test may"
)]

#[path = "cli/alike.rs"]
mod alike;
#[path = "cli/alone.rs"]
mod alone;
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/exported.rs"]
mod exported;
#[path = "cli/hub.rs"]
mod hub;
#[path = "cli/local.rs"]
mod local;
#[path = "cli/named.rs"]
mod named;
#[path = "cli/pipeline.rs"]
mod pipeline;
#[path = "cli/process.rs"]
mod process;
#[path = "cli/refused.rs"]
mod refused;
#[path = "cli/served.rs"]
mod served;
#[path = "cli/services.rs"]
mod services;
#[path = "cli/world.rs"]
mod world;
