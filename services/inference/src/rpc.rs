//! The edge: the only folder of this crate that knows protobuf and gRPC.

pub(crate) mod answers;
mod caller;
pub(crate) mod events;
pub(crate) mod local;
mod parse;
pub(crate) mod service;
