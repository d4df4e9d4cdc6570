//! The inference service: questions in, answers out, over one base and the adapters that the registry declares.
//!
//! The way of a request: [`service`] → [`desk`]: [`question`] (checked) → [`door`] (a place, or refused at once) → [`adapters`] (pinned
//! to a generation) → [`engine`] (a thread; many answers together) → [`sequence`] → [`answer`] → the stream. The way of an adapter:
//! [`adapters::follower`] (declared) → [`adapters::plan`] (what next) → [`adapters::loader`] (checked) →
//! [`adapters::served`] (swapped in) → [`adapters::mismatch`] (measured, where its base is held otherwise) → [`announcer`] (said).
//! [`local`] answers without a service.

mod adapters;
mod announcer;
mod answer;
mod base;
mod config;
mod desk;
mod door;
mod engine;
mod error;
mod generation;
mod local;
mod metrics;
mod options;
mod probe;
mod question;
mod replica;
pub mod semconv;
mod sequence;
mod service;
mod stop_text;

use std::sync::Arc;

use togi_proto::inference::v1::inference_service_server::InferenceServiceServer;
use togi_runtime::grpc::Services;
use togi_runtime::{Context, Tasks};

pub use adapters::served::{Refusal, Served, Serving};
pub use announcer::ReplicaEntry;
pub use config::{AdaptersConfig, Config, DEFAULTS, EngineConfig, StopConfig};
pub use desk::Answers;
pub use door::Load;
pub use error::{Error, Result};
pub use generation::Generation;
pub use local::Local;
pub use replica::Replica;
pub use service::Service;

/// Adds the service and starts its work. Returns at once: until the base is loaded, readiness is held back and requests are answered
/// `UNAVAILABLE`.
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

/// As [`start`], and returns the replica, for whoever wants to look at it.
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
    let runs = replica.clone();
    tasks.spawn("inference", async move {
        Ok(runs.run(base_latch, adapters_latch).await?)
    });
    Ok(replica)
}
