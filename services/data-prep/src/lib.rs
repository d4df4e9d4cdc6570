//! Data-prep: records in, token shards out, rows over Arrow Flight.
//!
//! Each step of a preparation has one file: [`request`] → [`source`], for a hub's data set with
//! `hub` and `dataset_card`, and [`splits`] → [`input`] →
//! `tokenize` within [`pipeline`] → `spool` → [`shards`] → `commit`, driven by
//! [`preparer`]. Committed data sets are read by [`catalog`] and `rows`, and served by [`rpc`].

use std::sync::Arc;

use togi_runtime::rpc::server::Services;
use togi_runtime::{Context, Tasks, telemetry, worker};

mod commit;
mod dataset_card;
mod error;
mod hub;
mod rows;
mod spool;
mod tokenize;
mod upload;

pub mod catalog;
pub mod config;
pub mod input;
pub mod metrics;
pub mod pipeline;
pub mod preparer;
pub mod progress;
pub mod read_as;
pub mod request;
pub mod rpc;
pub mod shards;
pub mod source;
pub mod splits;
pub mod tokenizers;

pub use config::Config;
pub use error::{Error, Result};

/// Adds `DataPrepService` and Arrow Flight to a process's services, and the worker of preparations
/// to its tasks.
///
/// # Errors
/// When a part of the configuration cannot be used.
pub async fn start(
    config: Config,
    context: &Context,
    services: &mut Services,
    tasks: &mut Tasks,
) -> togi_runtime::Result<()> {
    let Config {
        prepare,
        flight,
        bases,
        sources,
        ..
    } = config;
    let metrics = metrics::Metrics::new(&telemetry::meter());
    let resolver = request::Resolver {
        finder: source::Finder {
            store: context.store.clone(),
            sources: Arc::new(sources),
            max_files: prepare.max_source_files,
        },
        tokenizers: tokenizers::Tokenizers::new(&context.store, bases),
    };
    let service = rpc::service::Service::new(context, resolver.clone(), prepare.clone());
    services.add(service.into_server());
    let flight = rpc::flight::Flight::new(&context.store, flight, &metrics);
    services.add(flight.into_server());
    let limits = worker::Limits {
        slots: prepare.jobs,
        jobs: 0,
    };
    let preparer = preparer::Preparer::new(context, resolver, prepare, metrics);
    tasks.spawn(
        "prepare-worker",
        worker::serve(context.clone(), Arc::new(preparer), limits),
    );
    Ok(())
}
