//! The life of a process: its stop, its tasks, its readiness, the deadlines of
//! its calls, and the one-time setup of TLS.

pub mod backoff;
pub mod crypto;
pub mod deadline;
pub mod readiness;
pub mod stop;
pub mod tasks;
