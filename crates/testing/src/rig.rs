//! The real parts that a test needs: a bus, a store, and a context over both.

use tempfile::TempDir;
use togi_runtime::config::StoreConfig;
use togi_runtime::{Bus, Context, Readiness, Result, Stopper, Store};

use crate::nats::NatsServer;

/// A nats-server and a store in a temporary folder.
#[derive(Debug)]
pub struct Rig {
    /// The server.
    pub nats: NatsServer,
    /// The store's folder.
    pub folder: TempDir,
}

impl Rig {
    /// Starts the server and creates the folder.
    ///
    /// # Panics
    /// As [`NatsServer::start`].
    #[must_use]
    pub fn start() -> Self {
        togi_runtime::life::crypto::install_crypto();
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self {
            nats: NatsServer::start(),
            folder,
        }
    }

    /// Returns the store's configuration.
    ///
    /// # Panics
    /// If the folder's path cannot be a URL.
    #[must_use]
    pub fn store_config(&self) -> StoreConfig {
        StoreConfig::folder(self.folder.path()).expect("a temporary folder has a URL")
    }

    /// Returns a context like that of another process: with its own connection, stopper and name.
    ///
    /// # Errors
    /// If the bus or the store cannot be opened.
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

/// Opens a store in a new temporary folder, which is deleted on drop.
///
/// # Panics
/// If the folder cannot be created or opened.
pub async fn folder_store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = StoreConfig::folder(folder.path()).expect("a temporary folder has a URL");
    let store = Store::open(&config).await.expect("a folder can be opened");
    (folder, store)
}
