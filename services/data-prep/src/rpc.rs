//! The gRPC edge: `DataPrepService` and Arrow Flight. Protobuf types stop here, and errors become
//! statuses.

pub mod conversion;
pub mod flight;
pub mod service;
mod ticket;
