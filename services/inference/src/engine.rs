//! The engine: a valid request in, a stream of events out. [`admission`] takes the request,
//! [`door`] hands it to [`thread`], which owns the device. Nothing here knows protobuf or gRPC.

mod account;
pub(crate) mod admission;
mod answer;
pub(crate) mod door;
mod group;
pub(crate) mod load;
pub(crate) mod options;
mod outbox;
mod probe;
pub(crate) mod request;
mod scheduler;
pub(crate) mod sequence;
mod stop_text;
mod terms;
pub(crate) mod thread;
