//! The gRPC edge.

pub(crate) mod service;
