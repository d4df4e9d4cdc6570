//! The edge: protobuf messages, as gRPC calls, as the JSON in the store and on the bus, and as TOML
//! files. Nothing is decided here.

mod adapter;
mod event;
mod gate;
mod policy;
mod recipe;
mod request;
mod step;
mod stored;
mod ticket;
mod trainer;

pub(crate) use adapter::AdapterApi;
pub(crate) use policy::PolicyApi;
pub(crate) use trainer::TrainerApi;
