//! Data-prep: records in, token shards out, rows over Arrow Flight.
//!
//! The flow of a preparation, one file a step: [`request`] → [`submission`] → [`source`] →
//! [`input`] → `tokenize` within [`pipeline`] → `spool` → [`shards`] → `commit`, driven by
//! [`preparer`]. What is committed is read by [`catalog`] and served by [`service`] and [`flight`].

use std::sync::Arc;

use arrow_flight::flight_service_server::FlightServiceServer;
use togi_proto::dataprep::v1::data_prep_service_server::DataPrepServiceServer;
use togi_runtime::rpc::server::Services;
use togi_runtime::{Context, Tasks, telemetry, worker};

mod commit;
mod error;
mod spool;
mod tokenize;
mod upload;

pub mod catalog;
pub mod config;
pub mod flight;
pub mod input;
pub mod metrics;
pub mod pipeline;
pub mod preparer;
pub mod progress;
pub mod request;
pub mod service;
pub mod shards;
pub mod source;
pub mod submission;
pub mod tokenizers;

pub use config::Config;
pub use error::Error;

/// What most of this crate returns: the runtime's error, unless another is named.
pub(crate) type Result<T, E = togi_runtime::Error> = std::result::Result<T, E>;

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
) -> Result<()> {
    let Config {
        prepare,
        flight,
        bases,
        sources,
        ..
    } = config;
    let metrics = metrics::Metrics::new(&telemetry::meter());
    let submissions = submission::Submissions {
        finder: source::Finder {
            store: context.store.clone(),
            sources: Arc::new(sources),
            max_files: prepare.max_source_files,
        },
        tokenizers: tokenizers::Tokenizers::new(&context.store, bases),
    };
    let service = service::Service::new(context, submissions.clone(), prepare.clone());
    services.add(DataPrepServiceServer::new(service));
    let flight = flight::Flight::new(&context.store, flight, &metrics);
    services.add(FlightServiceServer::new(flight).max_decoding_message_size(64 << 10));
    let limits = worker::Limits {
        slots: prepare.jobs,
        jobs: 0,
    };
    let preparer = preparer::Preparer::new(context, submissions, prepare, metrics);
    tasks.spawn(
        "prepare-worker",
        worker::serve(context.clone(), Arc::new(preparer), limits),
    );
    Ok(())
}
