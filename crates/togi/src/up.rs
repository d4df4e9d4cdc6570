//! `togi up`: the services in one process, with their own NATS server and a store in a folder
//! unless others are named.
//!
//! [`start`] starts everything and returns; [`Running::wait`] waits for the stopper, then ends the
//! services first and NATS last.

mod nats;
mod options;
mod service;

use std::net::SocketAddr;
use std::path::PathBuf;

use togi_runtime::config::{NatsConfig, StoreConfig};
use togi_runtime::life::stop::Hold;
use togi_runtime::process::admin;
use togi_runtime::{Context, Readiness, Stopper, Tasks, rpc};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::nats::Server;
use crate::error::{Error, Result};
use crate::settings::File;
use crate::up_state::{DataFolder, NatsState, UpState};
use crate::{embedded, local};

pub use self::nats::BINARY_VARIABLE;
pub use self::options::{DEFAULT_ADMIN, DEFAULT_LISTEN, Options};

/// The running services.
pub struct Running {
    state: UpState,
    context: Context,
    tasks: Tasks,
    nats: Option<OwnNats>,
    folder: DataFolder,
}

/// A child process that is restarted whenever it dies, until this value is dropped.
struct OwnNats {
    stop: DropGuard,
    guard: JoinHandle<()>,
}

/// Starts everything; stops it again if something fails. If the future is dropped before its end,
/// [`Stopper::released`] waits for the end of nats-server.
///
/// # Errors
/// [`Error::Unavailable`] if a port or the data folder is in use or nats-server is missing,
/// [`Error::Configuration`] for wrong settings, and the error of an unusable device.
pub async fn start(options: Options, stopper: Stopper) -> Result<Running> {
    // Kept open until the services have opened it: a missing device is reported before anything
    // starts.
    let _gpu = local::gpu(options.device).await?;
    let folder = DataFolder::take(&options.data)?;
    let grpc_port = bind(options.listen, "--listen").await?;
    let admin_port = bind(options.admin, "--admin").await?;
    let endpoint = format!("http://{}", address_of(&grpc_port)?);
    let store_config = store_config(&options.file, &folder)?;
    let demo = embedded::write_base(&folder.path().join("bases"))?;
    let configs = service::configs(&options, &folder, &endpoint, &store_config, &demo)?;

    // Before the child, so that a future that is dropped lets go of the child first.
    let hold = stopper.hold();
    let server = match &options.nats {
        Some(_) => None,
        None => Some(Server::start(folder.path()).await?),
    };
    let state = UpState {
        pid: std::process::id(),
        endpoint,
        admin: format!("http://{}", address_of(&admin_port)?),
        store: store_config.url.clone(),
        nats: match &server {
            Some(server) => server.state().clone(),
            None => NatsState::elsewhere(options.nats.unwrap_or_default()),
        },
    };
    state.write(folder.path())?;
    let data = folder.path().to_owned();
    let nats = server.map(|server| {
        let guard = Guard {
            server,
            state: state.clone(),
            data,
        };
        OwnNats::new(guard, &stopper, hold)
    });

    let readiness = Readiness::new();
    let _starting = readiness.latch("starting");
    let mut tasks = Tasks::new(&stopper);
    let admin = admin::serve(admin_port, readiness.clone(), stopper.clone());
    tasks.spawn("admin", admin);
    let nats_config = configs.nats(&state.nats.url);
    let connecting = connect(&nats_config, &store_config, readiness.clone(), &stopper);
    // Calls are answered with what is waited for.
    let connected = rpc::starting::serve(grpc_port, &readiness, connecting).await;
    let connected = connected
        .map_err(Error::from)
        .and_then(|(port, context)| Ok((port, context?)));
    let (grpc_port, context) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            end_nats(nats).await;
            UpState::remove(folder.path());
            return Err(error);
        }
    };
    let mut running = Running {
        state,
        tasks,
        context,
        nats,
        folder,
    };
    match running.serve(configs, grpc_port).await {
        Ok(()) => Ok(running),
        Err(error) => {
            stopper.stop();
            // The first failure is reported.
            let _ = running.wait().await;
            Err(error)
        }
    }
}

impl Running {
    /// Returns the addresses of everything.
    pub fn state(&self) -> &UpState {
        &self.state
    }

    /// Returns the parts that the services share: the bus, the store, the stopper.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Waits until all services are ready; returns false if they stopped or one failed first.
    pub async fn ready(&self) -> bool {
        self.context
            .stopper
            .run(self.context.readiness.ready())
            .await
            .is_some()
    }

    /// Waits until the stopper stops or a service fails, then ends the services first and NATS
    /// last.
    ///
    /// # Errors
    /// The error of the service that failed.
    pub async fn wait(self) -> Result<()> {
        let outcome = self.tasks.join().await;
        // The connection closes before its server stops, so that it logs no lost server.
        drop(self.context);
        end_nats(self.nats).await;
        UpState::remove(self.folder.path());
        Ok(outcome?)
    }

    /// Stops everything and waits for its end.
    ///
    /// # Errors
    /// As [`Running::wait`].
    pub async fn stop(self) -> Result<()> {
        self.context.stopper.stop();
        self.wait().await
    }

    async fn serve(&mut self, configs: service::Configs, grpc_port: TcpListener) -> Result<()> {
        let mut services = rpc::server::Services::new();
        let latch = self.context.readiness.latch("services");
        service::start(configs, &self.context, &mut services, &mut self.tasks).await?;
        drop(latch);
        let context = self.context.clone();
        self.tasks.spawn("grpc", async move {
            rpc::server::serve(grpc_port, services, &context.readiness, &context.stopper).await
        });
        self.tasks
            .spawn("NATS", self.context.clone().note_absences());
        Ok(())
    }
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another program listens there".to_owned(),
            _ => error.to_string(),
        };
        Error::Unavailable(format!(
            "cannot listen on {address}: {reason}; choose another address with {flag}"
        ))
    })
}

fn address_of(listener: &TcpListener) -> Result<SocketAddr> {
    listener
        .local_addr()
        .map_err(|error| Error::Unavailable(format!("a port has no address: {error}")))
}

/// Returns the configured store, or the folder `store` of the data folder.
fn store_config(file: &File, folder: &DataFolder) -> Result<StoreConfig> {
    match &file.store.url {
        Some(url) => Ok(StoreConfig {
            url: url.clone(),
            options: file.store.options.clone(),
            secrets: None,
        }),
        None => Ok(StoreConfig::folder(&folder.path().join("store"))?),
    }
}

async fn connect(
    nats: &NatsConfig,
    store: &StoreConfig,
    readiness: Readiness,
    stopper: &Stopper,
) -> Result<Context> {
    Ok(Context::open(nats, store, "togi-up", readiness, stopper.clone()).await?)
}

/// What it takes to keep nats-server alive.
struct Guard {
    server: Server,
    state: UpState,
    data: PathBuf,
}

impl Guard {
    /// Restarts nats-server at the same address whenever it dies; stops it when `stop` is
    /// cancelled.
    async fn keep_alive(&mut self, stop: CancellationToken) {
        loop {
            let how = tokio::select! {
                how = self.server.ended() => how,
                () = stop.cancelled() => return self.server.stop().await,
            };
            tracing::warn!(how, "nats-server ended; starting it again");
            while let Err(error) = self.server.restart().await {
                tracing::error!(%error, "nats-server does not start; trying again");
                tokio::select! {
                    () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
                    () = stop.cancelled() => return self.server.stop().await,
                }
            }
            self.state.nats = self.server.state().clone();
            if let Err(error) = self.state.write(&self.data) {
                tracing::warn!(%error, "cannot note the new nats-server");
            }
        }
    }
}

impl OwnNats {
    /// Keeps the server alive in a task that lets go of `hold` after the server's end. It kills the
    /// server when the end is requested at once.
    fn new(mut guard: Guard, stopper: &Stopper, hold: Hold) -> Self {
        let stop = CancellationToken::new();
        let killed = stopper.killed();
        let stopped = stop.clone();
        let guard = async move {
            tokio::select! {
                () = guard.keep_alive(stopped) => {}
                () = killed => guard.server.kill().await,
            }
            drop(hold);
        };
        Self {
            guard: tokio::spawn(guard),
            stop: stop.drop_guard(),
        }
    }
}

async fn end_nats(nats: Option<OwnNats>) {
    let Some(OwnNats { stop, guard }) = nats else {
        return;
    };
    drop(stop);
    if let Err(error) = guard.await {
        tracing::error!(%error, "the guard of nats-server panicked");
    }
}
