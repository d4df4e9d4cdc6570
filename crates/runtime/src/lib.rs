//! How a Togi process lives: configuration, telemetry, stopping, gRPC, the bus, the object store and its keys, jobs and
//! their one worker loop, errors. It knows the wire contract and nothing of records, networks or services.

pub mod admin;
pub mod aliases;
pub mod bus;
pub mod card;
pub mod config;
pub mod error;
pub mod events;
pub mod folder;
pub mod grpc;
pub mod hub;
pub mod jobs;
pub mod kv;
pub mod layout;
pub mod lease;
pub mod memory;
pub mod process;
pub mod registry;
pub mod replicas;
pub mod rpc_trace;
pub mod semconv;
pub mod stop;
pub mod store;
pub mod streams;
pub mod tasks;
pub mod telemetry;
pub mod testing;
pub mod worker;

pub use admin::{Latch, Readiness};
pub use bus::Bus;
pub use error::{Class, Error, Result};
pub use events::Event;
pub use jobs::{JobId, Jobs};
pub use process::Context;
pub use stop::Stopper;
pub use store::{Put, Store};
pub use tasks::Tasks;
