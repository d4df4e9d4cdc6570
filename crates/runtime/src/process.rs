//! The life of every service's process: configuration, telemetry, signals, listeners, bus and
//! store, the service, its end.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::bus::Bus;
use crate::config::{self, ListenConfig, NatsConfig, StoreConfig, TelemetryConfig};
use crate::context::Context;
use crate::error::{Class, Error, Result};
use crate::life::crypto::install_crypto;
use crate::life::readiness::{Latch, Readiness};
use crate::life::stop::Stopper;
use crate::life::tasks::Tasks;
use crate::rpc::server::Services;
use crate::{rpc, telemetry};

pub mod admin;
pub mod memory;

/// The sections of a service's configuration that every process needs.
pub trait Sections {
    /// How to reach NATS.
    fn nats(&self) -> &NatsConfig;
    /// Where objects are.
    fn store(&self) -> &StoreConfig;
    /// What is logged and exported.
    fn telemetry(&self) -> &TelemetryConfig;
    /// Where to listen.
    fn listen(&self) -> &ListenConfig;
    /// Whether the service is not ready before the bus is connected, and ends if NATS cannot be
    /// used.
    fn waits_for_bus(&self) -> bool {
        true
    }
}

/// The task of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// To serve.
    Serve,
    /// To check the configuration and print its addresses.
    Validate,
    /// To ask the service under this configuration whether it is ready, as a container's health
    /// check.
    Check,
}

/// Runs a service's process to its end. `load` takes the files of `TOGI_CONFIG` and of every
/// `--config FILE`; `start` starts the service. `--validate` only checks the configuration, and
/// `--check` asks the running service whether it is ready.
pub fn main<C, S>(service: &str, load: impl FnOnce(&[PathBuf]) -> Result<C>, start: S) -> ExitCode
where
    C: Sections,
    S: AsyncFnOnce(C, &Context, &mut Services, &mut Tasks) -> Result<()>,
{
    install_crypto();
    let arguments = arguments(std::env::args().skip(1));
    let loaded = arguments.and_then(|(task, files)| {
        let config = load(&files)?;
        if task == Task::Serve {
            // Read again when the store is opened; a fault is better reported at once.
            config.store().all_options()?;
        }
        Ok((task, config))
    });
    let (task, config) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("{service}: {}", config::named(&error, "TOGI"));
            return ExitCode::from(config::EXIT_CODE);
        }
    };
    // At least two threads: the exporter of spans waits for itself on one.
    let threads = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .max(2);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{service}: the runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = match task {
        Task::Serve => runtime.block_on(live(service, config, start)),
        Task::Check => runtime.block_on(rpc::client::check(config.listen().grpc)),
        Task::Validate => {
            let ListenConfig { grpc, admin } = config.listen();
            let said = writeln!(
                std::io::stdout(),
                "{service}: valid; grpc {grpc}, admin {admin}"
            );
            said.map_err(Error::from)
        }
    };
    // Computing threads must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_secs(2));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.class() == Class::Cancelled => ExitCode::SUCCESS,
        Err(error) if error.class() == Class::InvalidArgument => {
            eprintln!("{service}: {}", config::named(&error, "TOGI"));
            ExitCode::from(config::EXIT_CODE)
        }
        Err(error) => {
            eprintln!("{service}: {}", error.chain());
            ExitCode::from(error.class().exit_code())
        }
    }
}

async fn live<C: Sections, S>(service: &str, config: C, start: S) -> Result<()>
where
    S: AsyncFnOnce(C, &Context, &mut Services, &mut Tasks) -> Result<()>,
{
    let guard = telemetry::init(config.telemetry(), service)?;
    let stopper = Stopper::on_signals()?;
    let result = serve(service, config, start, &stopper).await;
    if let Err(error) = &result
        && error.class() != Class::InvalidArgument
    {
        tracing::error!(error = error.chain(), "the service ended");
    }
    guard.flush().await;
    result
}

async fn serve<C: Sections, S>(service: &str, config: C, start: S, stopper: &Stopper) -> Result<()>
where
    S: AsyncFnOnce(C, &Context, &mut Services, &mut Tasks) -> Result<()>,
{
    let listen = config.listen();
    let grpc_listener = bind("listen.grpc", listen.grpc).await?;
    let admin_listener = bind("listen.admin", listen.admin).await?;
    let readiness = Readiness::new();
    let starting = readiness.latch("starting");
    let mut tasks = Tasks::new(stopper);
    tasks.spawn(
        "admin",
        admin::serve(admin_listener, readiness.clone(), stopper.clone()),
    );
    let (nats, store) = (config.nats(), config.store());
    let opening =
        Context::open_store_first(nats, store, service, readiness.clone(), stopper.clone());
    let opened = rpc::starting::serve(grpc_listener, &readiness, opening).await;
    let started = async {
        let (grpc_listener, context) = opened?;
        let context = context?;
        tasks.spawn("NATS", context.clone().note_absences());
        if config.waits_for_bus() {
            let latch = context.readiness.latch("bus");
            tasks.spawn("bus", until_usable(context.bus.clone(), latch));
        }
        let mut services = Services::new();
        start(config, &context, &mut services, &mut tasks).await?;
        drop(starting);
        rpc::server::serve(
            grpc_listener,
            services,
            &context.readiness,
            &context.stopper,
        )
        .await
    };
    let result = started.await;
    stopper.stop();
    let joined = tasks.join().await;
    result.and(joined)
}

/// Waits until the bus can be used.
///
/// # Errors
/// Those that no wait mends.
async fn until_usable(bus: Bus, latch: Latch) -> Result<()> {
    let usable = bus.usable().await;
    drop(latch);
    match usable {
        Err(error) if error.class() == Class::Cancelled => Ok(()),
        usable => usable,
    }
}

/// Binds a port.
///
/// # Errors
/// `Unavailable` if the port is taken or not permitted.
pub async fn bind(field: &str, address: std::net::SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let message = format!("cannot listen on {address}: {}", error.kind());
        Error::unavailable(message)
            .with_field(field)
            .with_source(error)
    })
}

fn arguments(mut arguments: impl Iterator<Item = String>) -> Result<(Task, Vec<PathBuf>)> {
    let mut task = Task::Serve;
    let mut files: Vec<PathBuf> = std::env::var_os("TOGI_CONFIG")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    while let Some(argument) = arguments.next() {
        if let Some(asked) = Task::from_flag(&argument) {
            task = asked;
            continue;
        }
        let file = match argument.split_once('=') {
            Some(("--config", file)) => Some(file.to_owned()),
            None if argument == "--config" => arguments.next(),
            _ => None,
        };
        let Some(file) = file else {
            let usage = "[--config FILE]... [--validate | --check]";
            let message = format!("\"{argument}\" is not understood; usage: {usage}");
            return Err(Error::new(Class::InvalidArgument, message));
        };
        files.push(file.into());
    }
    Ok((task, files))
}

impl Task {
    fn from_flag(flag: &str) -> Option<Self> {
        match flag {
            "--validate" => Some(Self::Validate),
            "--check" => Some(Self::Check),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_configuration_files_and_a_task() {
        let parse = |given: &[&str]| arguments(given.iter().map(|a| (*a).to_owned()));
        let files = vec![PathBuf::from("a"), "b".into()];
        assert_eq!(
            parse(&["--config", "a", "--config=b"]).unwrap(),
            (Task::Serve, files.clone())
        );
        assert_eq!(
            parse(&["--config=a", "--validate", "--config=b"]).unwrap(),
            (Task::Validate, files)
        );
        assert_eq!(parse(&["--check"]).unwrap().0, Task::Check);
        assert!(parse(&["--verbose"]).is_err());
        assert!(parse(&["--config"]).is_err());
    }
}
