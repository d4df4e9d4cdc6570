//! The service's configuration; `default.toml` explains each key.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use togi_runtime::config::{BasesConfig, ListenConfig, NatsConfig, StoreConfig, TelemetryConfig};
use togi_runtime::layout::validate_name;
use togi_runtime::process::Sections;
use togi_runtime::{Error, Result};

/// The default settings, which files and the environment change.
pub const DEFAULTS: &str = include_str!("../default.toml");

/// The whole configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the process listens.
    pub listen: ListenConfig,
    /// The bus.
    pub nats: NatsConfig,
    /// The object store.
    pub store: StoreConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// Preparations.
    pub prepare: PrepareConfig,
    /// Arrow Flight.
    pub flight: FlightConfig,
    /// Bases whose tokenizer a request may name.
    pub bases: BasesConfig,
    /// Sources that a request may name: an object, or all objects below a URL that ends in a slash.
    pub sources: BTreeMap<String, StoreConfig>,
}

/// How preparations run.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareConfig {
    /// Preparations at the same time.
    pub jobs: usize,
    /// Tokenizing threads; 0 means one per core.
    pub workers: usize,
    /// Folder for spooled rows; empty means the system's temporary folder.
    pub scratch: PathBuf,
    /// Most bytes of an upload.
    pub max_upload_bytes: u64,
    /// Most bytes of a source's file after unpacking.
    pub max_source_bytes: u64,
    /// Most files of a source.
    pub max_source_files: usize,
}

impl PrepareConfig {
    /// Returns the scratch folder.
    pub fn scratch(&self) -> PathBuf {
        if self.scratch.as_os_str().is_empty() {
            std::env::temp_dir()
        } else {
            self.scratch.clone()
        }
    }

    /// Returns the number of tokenizing threads of a request that has none.
    pub fn workers(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        }
    }
}

/// How rows are served.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlightConfig {
    /// Most bytes of decoded shards in the cache.
    pub cache_bytes: usize,
    /// Rows looked up at a time.
    pub window_rows: usize,
    /// Most rows in a message.
    pub batch_rows: usize,
    /// Readers at the same time.
    pub max_readers: usize,
}

impl Config {
    /// Returns the default configuration with files and the environment over it.
    ///
    /// # Errors
    /// `InvalidArgument` with the key's name.
    pub fn load(files: &[PathBuf]) -> Result<Self> {
        togi_runtime::config::load(DEFAULTS, files, "TOGI", Self::validate)
    }

    fn validate(&self) -> Result<()> {
        self.nats.check()?;
        let bases = self.bases.keys().map(|name| ("bases", name));
        let sources = self.sources.keys().map(|name| ("sources", name));
        for (section, name) in bases.chain(sources) {
            validate_name(&format!("{section}.{name}"), name)?;
        }
        let counts = [
            ("prepare.jobs", self.prepare.jobs),
            ("prepare.max_source_files", self.prepare.max_source_files),
            ("flight.window_rows", self.flight.window_rows),
            ("flight.batch_rows", self.flight.batch_rows),
            ("flight.max_readers", self.flight.max_readers),
        ];
        for (key, count) in counts {
            if count == 0 {
                return Err(Error::invalid(key, format!("{key} must be at least 1")));
            }
        }
        Ok(())
    }
}

impl Sections for Config {
    fn nats(&self) -> &NatsConfig {
        &self.nats
    }

    fn store(&self) -> &StoreConfig {
        &self.store
    }

    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn listen(&self) -> &ListenConfig {
        &self.listen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_complete_and_valid() {
        let config = Config::load(&[]).unwrap();
        assert!(config.prepare.workers() >= 1);
        assert!(config.prepare.scratch().is_absolute());
        assert!(config.bases.is_empty() && config.sources.is_empty());
    }

    #[test]
    fn a_wrong_value_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let table = [
            ("[flight]\nbatch_rows = 0", "flight.batch_rows"),
            ("[sources.A_B]\nurl = \"file:///x\"", "sources.A_B"),
            (
                "[sources.a]\nurl = \"file:///x\"\nprecision = \"nf4\"",
                "precision",
            ),
            ("[prepare]\nthreads = 1", "threads"),
        ];
        for (text, named) in table {
            let file = folder.path().join("config.toml");
            std::fs::write(&file, text).unwrap();
            let error = Config::load(&[file]).unwrap_err();
            assert!(error.message().contains(named), "{}", error.message());
        }
    }
}
