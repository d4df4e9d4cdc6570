//! The gRPC edge: `DataPrepService` and Arrow Flight. Protobuf types are converted to ours here, and
//! errors to the runtime's.

pub mod conversion;
pub mod flight;
pub mod service;
mod ticket;
