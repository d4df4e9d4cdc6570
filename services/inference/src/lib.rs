//! The inference service: answers over one base and the adapters that the registry declares.
//!
//! The way of a request: [`rpc`] (parsed and checked) → [`engine::admission`] (a permit, or refused
//! at once) → [`adapters`] (pinned to a generation) → [`engine::door`] → [`engine::thread`] (many
//! answers together) → [`engine::sequence`] → [`engine::event`] → [`rpc`]. The way of an adapter:
//! [`adapters::follower`] (declared) → [`adapters::plan`] (the next action) → [`adapters::loader`]
//! (checked) → [`adapters::served`] (swapped in) → [`adapters::mismatch`] (measured, where its base
//! has another precision here) → [`adapters::announcer`] (announced). [`local`] answers without a
//! service.

mod adapters;
mod base;
mod config;
mod engine;
mod error;
mod local;
mod metrics;
mod replica;
mod rpc;
pub mod semconv;
mod served_adapter;

use std::sync::Arc;

use togi_proto::inference::v1::inference_service_server::InferenceServiceServer;
use togi_runtime::rpc::server::Services;
use togi_runtime::{Context, Tasks};

pub use adapters::announcer::ReplicaEntry;
pub use adapters::served::{Refusal, Served, Serving};
pub use config::{AdaptersConfig, Config, DEFAULTS, EngineConfig, StopConfig};
pub use engine::load::Load;
pub use error::{Error, Result};
pub use local::Local;
pub use replica::Replica;
pub use rpc::answers::Answers;
pub use rpc::local::ask;
pub use rpc::service::Service;
pub use served_adapter::ServedAdapter;

/// Adds the service and starts its work. Returns at once. Until the base is loaded, the process is
/// not ready and requests are answered `UNAVAILABLE`.
///
/// # Errors
/// A setting out of its range.
pub async fn start(
    config: Config,
    context: &Context,
    services: &mut Services,
    tasks: &mut Tasks,
) -> togi_runtime::Result<()> {
    start_replica(config, context, services, tasks).map(drop)
}

/// Does the same as [`start`], and returns the replica.
///
/// # Errors
/// A setting out of its range.
pub fn start_replica(
    config: Config,
    context: &Context,
    services: &mut Services,
    tasks: &mut Tasks,
) -> togi_runtime::Result<Arc<Replica>> {
    let base_latch = context.readiness.latch("base");
    let adapters_latch = context.readiness.latch("adapters");
    let replica = Arc::new(Replica::new(config, context.clone())?);
    services.add(InferenceServiceServer::new(Service::new(replica.clone())));
    let running = replica.clone();
    tasks.spawn("inference", async move {
        Ok(running.run(base_latch, adapters_latch).await?)
    });
    Ok(replica)
}
