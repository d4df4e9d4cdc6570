//! Shared by the whole-system tests: the workspace's path, running systems, and their command.

mod cluster;
mod otlp;
mod system;

pub use cluster::{Cluster, S3, tool};
pub use otlp::{Receiver, Span};
pub use system::{System, program, run_python, workspace};
