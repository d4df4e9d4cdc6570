//! Starts a replica inside a process.

use std::sync::Arc;

use togi_runtime::rpc::server::Services;
use togi_runtime::{Context, Tasks};

use crate::config::Config;
use crate::replica::Replica;
use crate::rpc::service;

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
    service::add(services, replica.clone());
    let running = replica.clone();
    tasks.spawn("inference", async move {
        Ok(running.run(base_latch, adapters_latch).await?)
    });
    Ok(replica)
}
