//! How a Togi process lives: configuration, telemetry, stopping, gRPC, the bus, the object store
//! and its keys, jobs and their one worker loop, errors. It knows the wire contract and nothing of
//! records, networks or services.

pub mod bus;
pub mod config;
pub mod context;
pub mod error;
pub mod events;
pub mod fence;
mod job;
pub mod jobs;
pub mod layout;
pub mod life;
pub mod process;
pub mod registry;
pub mod rpc;
pub mod store;
pub mod telemetry;
pub mod worker;

pub use bus::Bus;
pub use context::Context;
pub use error::{Class, Error, Result};
pub use events::Event;
pub use fence::Fence;
pub use jobs::Jobs;
pub use life::readiness::{Latch, Readiness};
pub use life::stop::Stopper;
pub use life::tasks::Tasks;
pub use store::{Put, Store};
pub use togi_common::file;
pub use togi_common::{AliasName, DatasetId, Generation, JobId};
