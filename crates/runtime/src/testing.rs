//! Real parts for tests: a nats-server of one's own, a store in a temporary folder, waiting for a
//! condition. Not for services.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::bus::Bus;
use crate::config::{NatsConfig, StoreConfig};
use crate::context::Context;
use crate::error::Result;
use crate::life::readiness::Readiness;
use crate::life::stop::Stopper;
use crate::store::Store;

/// How long [`wait_until`] waits.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Returns the nats-server to run: `TOGI_NATS_SERVER`, else the one on `PATH`, else
/// `.tools/bin/nats-server` of the workspace.
#[must_use]
pub fn nats_server_binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("TOGI_NATS_SERVER").filter(|named| !named.is_empty()) {
        return Some(PathBuf::from(named));
    }
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&on_path).map(|folder| folder.join("nats-server"));
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.tools/bin/nats-server");
    on_path
        .chain([PathBuf::from(tools)])
        .find(|path| path.is_file())
}

/// A nats-server on a free port with its data in a temporary folder; killed when dropped.
#[derive(Debug)]
pub struct NatsServer {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

impl NatsServer {
    /// Starts one.
    ///
    /// # Panics
    /// If there is no nats-server, or it does not start.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut server = Self {
            folder,
            port: 0,
            child: None,
        };
        // Somebody may take the port between finding and using it.
        for _ in 0..5 {
            server.port = free_port();
            if server.try_resume() {
                return server;
            }
        }
        panic!(
            "nats-server does not start; its log is in {}",
            server.log().display()
        );
    }

    /// Returns its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Returns a configuration for it whose times suit tests: leases of 2 seconds, retries after 50
    /// milliseconds.
    #[must_use]
    pub fn config(&self) -> NatsConfig {
        NatsConfig {
            ack_wait_seconds: 2.0,
            retry_delay_seconds: 0.05,
            ..NatsConfig::at(self.url())
        }
    }

    /// Kills it (SIGKILL) and keeps its data.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again at the same port with the same data.
    ///
    /// # Panics
    /// If it does not start.
    pub fn resume(&mut self) {
        assert!(
            self.try_resume(),
            "nats-server does not start again; its log is in {}",
            self.log().display()
        );
    }

    /// Deletes all that JetStream has stored; to be called after [`NatsServer::kill`].
    ///
    /// # Panics
    /// If the folder cannot be deleted.
    pub fn wipe(&self) {
        assert!(self.child.is_none(), "kill the server before its data");
        let data = self.folder.path().join("data");
        if data.exists() {
            fs::remove_dir_all(data).expect("JetStream's folder can be deleted");
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn try_resume(&mut self) -> bool {
        let binary = nats_server_binary().expect(
            "tests need nats-server 2.14 or newer: set TOGI_NATS_SERVER, put it on PATH, or run `make test`, which fetches it",
        );
        let path = self.folder.path();
        let configuration = format!(
            "listen: \"127.0.0.1:{}\"\njetstream {{ store_dir: {:?}, sync_interval: always }}\n",
            self.port,
            path.join("data"),
        );
        fs::write(path.join("nats.conf"), configuration).expect("the configuration can be written");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .expect("a log");
        let child = Command::new(&binary)
            .arg("-c")
            .arg(path.join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be run: {error}", binary.display()));
        let child = self.child.insert(child);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if child.try_wait().ok().flatten().is_some() {
                break;
            }
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        self.kill();
        false
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener
        .local_addr()
        .expect("a bound listener has an address")
        .port()
}

/// A server, a store in a temporary folder, and contexts over both.
#[derive(Debug)]
pub struct Rig {
    /// The server.
    pub nats: NatsServer,
    /// The store's folder.
    pub folder: TempDir,
}

impl Rig {
    /// Starts the server and makes the folder.
    ///
    /// # Panics
    /// As [`NatsServer::start`].
    #[must_use]
    pub fn start() -> Self {
        crate::life::crypto::install_crypto();
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self {
            nats: NatsServer::start(),
            folder,
        }
    }

    /// Returns the store's configuration.
    ///
    /// # Panics
    /// If the folder's path has no URL.
    #[must_use]
    pub fn store_config(&self) -> StoreConfig {
        StoreConfig::folder(self.folder.path()).expect("a temporary folder has a URL")
    }

    /// Returns a context of a process of its own: own connection, own stopper, own name.
    ///
    /// # Errors
    /// If bus or store cannot be opened.
    pub async fn context(&self, instance: &str) -> Result<Context> {
        let stopper = Stopper::new();
        let store = Store::open(&self.store_config()).await?;
        let bus = Bus::connect(&self.nats.config(), instance, &stopper).await?;
        Ok(Context {
            stopper,
            bus,
            store,
            readiness: Readiness::new(),
            instance: instance.to_owned(),
        })
    }
}

/// Waits until a condition holds.
///
/// # Panics
/// If it does not hold after [`PATIENCE`]; `what` says what was waited for.
pub async fn wait_until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
