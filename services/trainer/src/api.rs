//! The gRPC edge: protobuf in, protobuf out, nothing decided here.

mod adapter;
mod policy;
mod trainer;

pub use adapter::AdapterApi;
pub use policy::PolicyApi;
pub use trainer::TrainerApi;
