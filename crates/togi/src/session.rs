//! The settings, output and connections of a command.

use togi_runtime::Store;
use togi_runtime::config::StoreConfig;

use crate::client::Clients;
use crate::error::{Error, Result};
use crate::globals::Flags;
use crate::output::Output;
use crate::settings::Settings;

/// The parts that every command gets.
#[derive(Clone, Debug)]
pub struct Session {
    /// Addresses, folders and the device.
    pub settings: Settings,
    /// Where results and messages go.
    pub output: Output,
    /// The services.
    pub clients: Clients,
}

impl Session {
    /// Reads the settings; no connection is opened yet.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn open(flags: &Flags) -> Result<Self> {
        let settings = Settings::load(flags)?;
        let output = Output::new(settings.output, flags.quiet, flags.no_color);
        Ok(Self {
            clients: Clients::new(&settings),
            output,
            settings,
        })
    }

    /// Opens the object store.
    ///
    /// # Errors
    /// [`Error::Usage`] if no setting names one and no `togi up` runs; the store's.
    pub async fn store(&self) -> Result<Store> {
        let url = self.settings.store.clone().ok_or_else(|| {
            Error::Usage("no store is known: start `togi up`, or name one with --store".to_owned())
        })?;
        let config = StoreConfig {
            url,
            options: self.settings.store_options.clone(),
            secrets: None,
        };
        Ok(Store::open(&config).await?)
    }

    /// Returns the session of services that all answer at one address.
    pub fn at(endpoint: &str, output: Output) -> Self {
        Self {
            settings: Settings::at(endpoint),
            clients: Clients::at(endpoint),
            output,
        }
    }
}
