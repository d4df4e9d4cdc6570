//! The engine: from a valid request to a stream of events. [`admission`] checks the length of a
//! prompt, [`door`] lets the job in, [`thread`] owns the device. Nothing here knows gRPC.

pub(crate) mod admission;
mod answer;
pub(crate) mod door;
pub(crate) mod load;
pub(crate) mod options;
mod probe;
pub(crate) mod request;
pub(crate) mod sequence;
mod stop_text;
pub(crate) mod thread;
