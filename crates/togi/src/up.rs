//! `togi up`: the services in one process, with a NATS server of their own and a store in a folder, or with those that are named.
//!
//! [`start`] gets everything ready and returns at once; [`Running::wait`] lasts until the stopper stops, then ends the
//! services first and NATS last.

mod nats;
mod service;
pub mod state;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use togi_model::Processor;
use togi_runtime::config::{NatsConfig, StoreConfig};
use togi_runtime::process::admin;
use togi_runtime::{Context, Readiness, Stopper, Tasks, rpc};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::nats::Server;
use self::state::{DataFolder, NatsState, UpState};
use crate::error::{Error, Result};
use crate::settings::File;
use crate::{embedded, local};

pub use self::nats::BINARY_VARIABLE;

/// Where gRPC listens unless told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7670";
/// Where metrics and health are unless told otherwise.
pub const DEFAULT_ADMIN: &str = "127.0.0.1:7680";

/// What `togi up` is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data folder.
    pub data: PathBuf,
    /// Where gRPC listens; port 0 for any free one.
    pub listen: SocketAddr,
    /// Where metrics and health are; port 0 for any free one.
    pub admin: SocketAddr,
    /// The base that inference serves; without one there is no inference.
    pub serve: Option<String>,
    /// A NATS server that runs already; without one it is a child of its own.
    pub nats: Option<String>,
    /// Where trainer and inference compute.
    pub device: Processor,
    /// How inference holds bases, by name, over what the file says.
    pub precisions: BTreeMap<String, String>,
    /// The configuration file: bases, the store, and each service's own settings.
    pub file: File,
}

impl Options {
    /// Returns the options for a data folder with free ports and defaults elsewhere, as tests and the demonstration want.
    pub fn in_folder(data: impl Into<PathBuf>) -> Self {
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            data: data.into(),
            listen: anywhere,
            admin: anywhere,
            serve: Some(embedded::BASE.to_owned()),
            nats: None,
            device: Processor::Cpu,
            precisions: BTreeMap::new(),
            file: File::default(),
        }
    }
}

/// The running services.
pub struct Running {
    state: UpState,
    context: Context,
    tasks: Tasks,
    nats: Option<OwnNats>,
    folder: DataFolder,
}

/// A child that is started again whenever it dies, until it is told to end.
struct OwnNats {
    stop: CancellationToken,
    guard: JoinHandle<()>,
}

/// Starts everything; what was started is stopped again if something fails.
///
/// # Errors
/// [`Error::Unavailable`] for a port or a data folder that is taken or a nats-server that is missing,
/// [`Error::Configuration`] for wrong settings; the device's refusal.
pub async fn start(options: Options, stopper: Stopper) -> Result<Running> {
    // Held until the services hold it: a device that is not there is told before anything starts.
    let _card = local::card(options.device).await?;
    let folder = DataFolder::take(&options.data)?;
    let grpc_port = bind(options.listen, "--listen").await?;
    let admin_port = bind(options.admin, "--admin").await?;
    let endpoint = format!("http://{}", address_of(&grpc_port)?);
    let store_config = store_config(&options.file, &folder)?;
    let demo = embedded::write_base(&folder.path().join("bases"))?;
    let configs = service::configs(&options, &folder, &endpoint, &store_config, &demo)?;

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
    let nats = server.map(|server| OwnNats::new(server, state.clone(), folder.path()));

    let context = match connect(&configs.nats(&state.nats.url), &store_config, &stopper).await {
        Ok(context) => context,
        Err(error) => {
            end_nats(nats).await;
            UpState::remove(folder.path());
            return Err(error);
        }
    };
    let mut running = Running {
        state,
        tasks: Tasks::new(&stopper),
        context,
        nats,
        folder,
    };
    match running.serve(configs, grpc_port, admin_port).await {
        Ok(()) => Ok(running),
        Err(error) => {
            stopper.stop();
            // The first failure is the one to tell.
            let _ = running.wait().await;
            Err(error)
        }
    }
}

impl Running {
    /// Returns where everything is.
    pub fn state(&self) -> &UpState {
        &self.state
    }

    /// Returns the process's shared parts: the bus, the store, the stopper.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Waits until all services can do their work; false if they were stopped before, or one of them failed.
    pub async fn ready(&self) -> bool {
        self.context
            .stopper
            .run(self.context.readiness.ready())
            .await
            .is_some()
    }

    /// Waits until the stopper stops or a service fails, then ends the services first and NATS last.
    ///
    /// # Errors
    /// What a service failed with.
    pub async fn wait(self) -> Result<()> {
        let outcome = self.tasks.join().await;
        // The connection ends before its server does: no alarm about a server that is gone.
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

    async fn serve(
        &mut self,
        configs: service::Configs,
        grpc_port: TcpListener,
        admin_port: TcpListener,
    ) -> Result<()> {
        let mut services = rpc::server::Services::new();
        let latch = self.context.readiness.latch("services");
        service::start(configs, &self.context, &mut services, &mut self.tasks).await?;
        drop(latch);
        let context = self.context.clone();
        self.tasks.spawn("grpc", async move {
            rpc::server::serve(grpc_port, services, &context.readiness, &context.stopper).await
        });
        let Context {
            readiness, stopper, ..
        } = self.context.clone();
        self.tasks
            .spawn("admin", admin::serve(admin_port, readiness, stopper));
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

/// Takes the configured store, or the folder `store` of the data folder.
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

async fn connect(nats: &NatsConfig, store: &StoreConfig, stopper: &Stopper) -> Result<Context> {
    Ok(Context::open(nats, store, "togi-up", Readiness::new(), stopper.clone()).await?)
}

/// Starts the nats-server again whenever it dies, at the same address; ends it when told to.
async fn keep_alive(
    mut server: Server,
    mut state: UpState,
    data: PathBuf,
    stop: CancellationToken,
) {
    loop {
        let how = tokio::select! {
            how = server.ended() => how,
            () = stop.cancelled() => return server.stop().await,
        };
        tracing::warn!(how, "nats-server ended; starting it again");
        while let Err(error) = server.restart().await {
            tracing::error!(%error, "nats-server does not start; trying again");
            tokio::select! {
                () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
                () = stop.cancelled() => return server.stop().await,
            }
        }
        state.nats = server.state().clone();
        if let Err(error) = state.write(&data) {
            tracing::warn!(%error, "cannot note the new nats-server");
        }
    }
}

impl OwnNats {
    fn new(server: Server, state: UpState, data: &Path) -> Self {
        let stop = CancellationToken::new();
        let guard = keep_alive(server, state, data.to_owned(), stop.clone());
        Self {
            guard: tokio::spawn(guard),
            stop,
        }
    }
}

async fn end_nats(nats: Option<OwnNats>) {
    let Some(OwnNats { stop, guard }) = nats else {
        return;
    };
    stop.cancel();
    if let Err(error) = guard.await {
        tracing::error!(%error, "the guard of nats-server panicked");
    }
}
