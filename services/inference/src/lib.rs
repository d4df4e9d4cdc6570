//! The inference service: answers over one base and the adapters that the registry declares.
//!
//! A request goes through [`rpc`] (parsed and checked), [`engine::admission`] (a permit, or refused
//! at once), [`adapters`] (pinned to a generation), [`adapters::tiers`] (on the device),
//! [`engine::door`], [`engine::thread`] (decoded with the others), [`engine::sequence`], [`event`]
//! and [`rpc`] again. An adapter goes through [`adapters::follower`] (declared), [`adapters::plan`]
//! (the next action), [`adapters::loader`] (checked), [`adapters::tiers`] and [`pool`] (brought
//! onto the device), [`adapters::served`] (swapped in), [`adapters::mismatch`] (measured, if its
//! base has another precision here) and [`adapters::announcer`] (announced).
//! [`local`] answers without a service.

mod adapters;
mod base;
mod config;
mod drain;
mod engine;
mod error;
mod event;
mod local;
mod metrics;
mod pool;
mod replica;
mod rpc;
pub mod semconv;
mod served_adapter;
mod start;

pub use adapters::announcer::ReplicaEntry;
pub use adapters::served::{Refusal, Served, Serving};
pub use config::{AdaptersConfig, Config, DEFAULTS, EngineConfig, StopConfig};
pub use engine::load::Load;
pub use error::{Error, Result};
pub use local::Local;
pub use pool::Usage;
pub use replica::Replica;
pub use rpc::answers::Answers;
pub use rpc::local::ask;
pub use rpc::service::Service;
pub use served_adapter::ServedAdapter;
pub use start::{start, start_replica};
