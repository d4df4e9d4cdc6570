//! What the whole-system tests share: where the workspace is, running systems, and their command.

mod cluster;
mod otlp;
mod system;

pub use cluster::{Cluster, S3, tool};
pub use otlp::{Receiver, Span};
pub use system::{System, program, run_python, workspace};
