//! What every main does, once: configuration, telemetry, signals, listeners, bus and store, the service, its end.

use std::{io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use tokio::net::TcpListener;

use crate::{
    Bus, Class, Error, Readiness, Result, Stopper, Store, Tasks, admin,
    config::{self, ListenConfig, NatsConfig, StoreConfig, TelemetryConfig},
    grpc::{self, Services},
    telemetry,
};

/// What a service works with. Clones share everything.
#[derive(Clone, Debug)]
pub struct Context {
    /// Asks for the end.
    pub stopper: Stopper,
    /// The bus.
    pub bus: Bus,
    /// The object store.
    pub store: Store,
    /// Whether the process can do its work.
    pub readiness: Readiness,
    /// The process's name as worker and replica: unlike any other's.
    pub instance: String,
}

impl Context {
    /// Opens store and bus, waiting for both. `service` begins the instance's name.
    ///
    /// # Errors
    /// What is wrong with the configuration; `Cancelled` if the stopper stops first.
    pub async fn open(
        nats: &NatsConfig,
        store: &StoreConfig,
        service: &str,
        readiness: Readiness,
        stopper: Stopper,
    ) -> Result<Self> {
        let _latch = readiness.latch("bus");
        let (store, instance) = open_store(store, service, &readiness, &stopper).await?;
        let bus = Bus::connect(nats, &instance, &stopper).await?;
        Ok(Self {
            stopper,
            bus,
            store,
            readiness,
            instance,
        })
    }

    /// Opens the store, waiting for it, and a bus that connects behind the scenes.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub async fn open_store_first(
        nats: &NatsConfig,
        store: &StoreConfig,
        service: &str,
        readiness: Readiness,
        stopper: Stopper,
    ) -> Result<Self> {
        let (store, instance) = open_store(store, service, &readiness, &stopper).await?;
        let bus = Bus::connect_later(nats, &instance, &stopper).await?;
        Ok(Self {
            stopper,
            bus,
            store,
            readiness,
            instance,
        })
    }
}

async fn open_store(
    config: &StoreConfig,
    service: &str,
    readiness: &Readiness,
    stopper: &Stopper,
) -> Result<(Store, String)> {
    install_crypto();
    let _latch = readiness.latch("store");
    let instance = instance(service)?;
    let cancelled = || {
        Error::new(
            Class::Cancelled,
            "stopped before the object store was there",
        )
    };
    let store = stopper
        .run(Store::open(config))
        .await
        .ok_or_else(cancelled)?
        .map_err(|error| match error.field() {
            // A store's own word for it: bases and sources have one too.
            Some("url") => error.with_field("store.url"),
            _ => error,
        })?;
    Ok((store, instance))
}

/// Returns a name that no other process has: service, host, and some random digits.
///
/// # Errors
/// When the system has no randomness.
pub fn instance(service: &str) -> Result<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(40)
        .collect();
    let random = crate::store::random_hex()?;
    Ok(format!("{service}-{host}-{}", &random[..8])
        .to_ascii_lowercase()
        .replace("--", "-"))
}

/// Chooses the process's TLS provider. Two are in the tree, and without a choice the first TLS connection panics.
pub fn install_crypto() {
    // An error only says that it was installed before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

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
    /// Whether the service can do nothing before the bus is there.
    fn waits_for_bus(&self) -> bool {
        true
    }
}

/// What a process was started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// To serve.
    Serve,
    /// To say whether the configuration is valid, and where it lets the service listen.
    Validate,
    /// To ask the service that runs under this configuration whether it is ready: a container's health check.
    Check,
}

/// A service's whole life in a process of its own. `load` takes the files of `--config FILE` (any number) and `TOGI_CONFIG`; `start` is
/// the service's. With `--validate` the configuration is only checked, with `--check` the service that runs here is asked whether it is
/// ready.
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
            // Read again when the store is opened; what is missing is better said at once.
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
        Task::Check => runtime.block_on(grpc::check(config.listen().grpc)),
        Task::Validate => {
            let ListenConfig { grpc, admin } = config.listen();
            let said = writeln!(
                std::io::stdout(),
                "{service}: valid; grpc {grpc}, admin {admin}"
            );
            said.map_err(Error::from)
        }
    };
    // Threads that compute must not keep the process.
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
    let context = match config.waits_for_bus() {
        true => Context::open(nats, store, service, readiness, stopper.clone()).await,
        false => Context::open_store_first(nats, store, service, readiness, stopper.clone()).await,
    };
    let started = async {
        let context = context?;
        let mut services = Services::new();
        start(config, &context, &mut services, &mut tasks).await?;
        drop(starting);
        grpc::serve(grpc_listener, services, &context).await
    };
    let result = started.await;
    stopper.stop();
    let joined = tasks.join().await;
    result.and(joined)
}

/// Binds a port.
///
/// # Errors
/// `Unavailable` if it is taken or not ours.
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

    #[test]
    fn instances_differ() {
        let (one, two) = (
            instance("togi-trainer").unwrap(),
            instance("togi-trainer").unwrap(),
        );
        assert_ne!(one, two);
        assert!(one.starts_with("togi-trainer-"), "{one}");
    }
}
