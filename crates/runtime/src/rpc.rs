//! gRPC as every process uses it: the server, the client, and the spans and metrics of calls.

pub mod client;
pub mod deadline;
pub mod page;
pub mod server;
pub mod starting;
pub mod trace;

/// Flow-control window of one stream, in bytes, at both ends.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// Flow-control window of one connection, in bytes, at both ends.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
