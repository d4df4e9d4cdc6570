//! The service put together: the parts of its roles, from one configuration.

use std::sync::Arc;

use togi_model::{DeviceName, Gpu};
use togi_runtime::jobs::Kind;
use togi_runtime::registry::aliases::Aliases;
use togi_runtime::{Context, Jobs, Result, Tasks, rpc, worker};
use tracing::info;

use crate::api::{AdapterApi, PolicyApi, TrainerApi};
use crate::bases::{Bases, WeightUse};
use crate::config::{Config, Role};
use crate::error::Error;
use crate::follower::Follower;
use crate::gauge::Gauge;
use crate::metrics::Metrics;
use crate::policies::policy::Policies;
use crate::policies::retraining::Retraining;
use crate::promoted;
use crate::queue::Queue;
use crate::run::parts::Parts;
use crate::run::worker::Worker;
use crate::submission::Admission;

/// Starts the configured roles: adds their gRPC services and spawns their tasks.
///
/// # Errors
/// A setting that is wrong.
pub async fn start(
    config: Config,
    context: &Context,
    services: &mut rpc::server::Services,
    tasks: &mut Tasks,
) -> Result<()> {
    config.validate()?;
    let (store, bus, stopper) = (&context.store, &context.bus, &context.stopper);
    let (weight_use, gauge) = if config.has(Role::Worker) {
        let gpu = gpu(config.device).await?;
        let gauge = Gauge::of(gpu.as_ref());
        (WeightUse::Training { gpu }, gauge)
    } else {
        (WeightUse::Answers, Gauge::default())
    };
    let (cache, device) = (config.training.base_cache(), config.device);
    let bases = Bases::new(config.bases.clone(), cache, device, weight_use);
    let data_prep = rpc::client::channel(&config.data_prep)?;
    let admission = Admission {
        store: store.clone(),
        bases: bases.clone(),
        data_prep: data_prep.clone(),
        device: config.device,
        memory_bytes: config.training.memory_bytes,
    };
    let jobs = Jobs::new(bus, store);
    let aliases = Aliases::new(bus, store);
    let metrics = Metrics::new();
    let retraining = Retraining::new(store.clone(), jobs.clone(), admission.clone());
    if config.has(Role::Api) {
        let queue = Queue::new(jobs.clone(), admission.clone());
        let policies = Policies::new(store.clone(), bus.clone(), admission.clone());
        let trainer = TrainerApi {
            store: store.clone(),
            queue: queue.clone(),
            stopper: stopper.clone(),
            poll: config.api.watch_poll(),
        };
        let adapters = AdapterApi {
            store: store.clone(),
            aliases: aliases.clone(),
        };
        services.add(trainer.service());
        services.add(adapters.service());
        services.add(PolicyApi::service(policies.clone()));
        let follower = Follower {
            bus: bus.clone(),
            policies,
            retraining: retraining.clone(),
            queue,
            metrics: metrics.clone(),
            period: config.api.reconcile(),
        };
        let mirroring = follower.policies.clone().keep_mirrored(stopper.clone());
        tasks.spawn("trainer: mirror of policies", mirroring);
        tasks.spawn("trainer: policies", follower.run(stopper.clone()));
        tasks.spawn(
            "trainer: aliases",
            aliases.clone().keep_told(stopper.clone()),
        );
        let period = config.api.reconcile();
        let observing = promoted::observe(aliases.clone(), period, stopper.clone());
        tasks.spawn("trainer: promoted", observing);
        if !config.has(Role::Worker) {
            // A worker does this anyway.
            tasks.spawn("trainer: jobs", jobs.keep(Kind::Train, stopper.clone()));
        }
    }
    if config.has(Role::Worker) {
        let handler = Worker {
            parts: Parts {
                store: store.clone(),
                bus: bus.clone(),
                aliases,
                bases,
                data_prep,
                training: config.training.clone(),
                metrics,
                gauge,
            },
            admission,
            retraining,
        };
        let limits = worker::Limits {
            // One job at a time: one thread owns the device.
            slots: 1,
            jobs: config.training.jobs,
        };
        tasks.spawn(
            "trainer: worker",
            worker::serve(context.clone(), Arc::new(handler), limits),
        );
    }
    Ok(())
}

/// Opens the worker's GPU; `None` for the CPU.
///
/// # Errors
/// A GPU that is missing or unfit.
async fn gpu(device: DeviceName) -> crate::Result<Option<Gpu>> {
    let opening = tokio::task::spawn_blocking(move || device.open());
    let gpu = opening.await.map_err(|_| Error::Panicked)??;
    if let Some(gpu) = &gpu {
        let memory_bytes = gpu.memory()?.available;
        info!(%device, gpu = gpu.name(), memory_bytes, "computing on a GPU");
    }
    Ok(gpu)
}
