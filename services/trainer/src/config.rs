//! Settings. `default.toml` lists all of them with comments; files and the environment override
//! them. [`Config::load`] returns checked settings.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use togi_model::DeviceName;
use togi_runtime::config::{
    self, BasesConfig, ListenConfig, NatsConfig, StoreConfig, TelemetryConfig,
};
use togi_runtime::process::Sections;
use togi_runtime::{Error, Result, layout};

/// The default settings, which files and the environment override.
pub const DEFAULTS: &str = include_str!("../default.toml");

/// All settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The roles of this process.
    pub roles: BTreeSet<Role>,
    /// The device that workers compute on.
    pub device: DeviceName,
    /// Data-prep's gRPC endpoint, which serves the rows.
    pub data_prep: String,
    /// The bases, by name.
    pub bases: BasesConfig,
    /// How jobs are trained.
    pub training: TrainingConfig,
    /// How requests are answered and policies kept.
    pub api: ApiConfig,
    /// The addresses to listen on.
    pub listen: ListenConfig,
    /// The connection to NATS.
    pub nats: NatsConfig,
    /// The object store.
    pub store: StoreConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

/// A role of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Answers requests and runs the policies; needs no device.
    Api,
    /// Trains jobs.
    Worker,
}

/// How jobs are trained.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    /// Budget for rows read ahead of their use, in bytes.
    pub prefetch_bytes: u32,
    /// Device memory that a job may plan for, in bytes; 0: the available memory.
    pub memory_bytes: u64,
    /// Jobs after which a worker's process stops; 0: unlimited.
    pub jobs: u64,
    /// Longest time until a step's line is durable, in seconds.
    pub log_flush_seconds: f64,
    /// Folder for bases copied from an object store; empty: the system's temporary folder.
    pub base_cache: PathBuf,
}

/// How requests are answered and policies kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiConfig {
    /// Interval between reads of a watched job's log, in seconds.
    pub watch_poll_seconds: f64,
    /// Interval between listings of the data sets' names for the policies, in seconds.
    pub reconcile_seconds: f64,
}

impl Config {
    /// Returns the settings: the defaults, overridden by each file in turn and then by the
    /// environment.
    ///
    /// # Errors
    /// The invalid setting, by name.
    pub fn load(files: &[PathBuf]) -> Result<Config> {
        config::load(DEFAULTS, files, "TOGI", Config::validate)
    }

    /// Whether this process has a role.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Checks the constraints that the types cannot express.
    ///
    /// # Errors
    /// `InvalidArgument` with the setting's name.
    pub fn validate(&self) -> Result<()> {
        self.nats.check()?;
        let schemes = ["http://", "https://"];
        if !schemes
            .iter()
            .any(|scheme| self.data_prep.starts_with(scheme))
        {
            let reason = format!(
                "{:?} is no endpoint; one looks like http://127.0.0.1:7671",
                self.data_prep
            );
            return Err(Error::invalid("data_prep", reason));
        }
        if self.roles.is_empty() {
            return Err(Error::invalid(
                "roles",
                "roles is empty; \"api\", \"worker\" or both are needed",
            ));
        }
        if self.training.prefetch_bytes == 0 {
            return Err(Error::invalid(
                "training.prefetch_bytes",
                "training.prefetch_bytes must be above 0",
            ));
        }
        for (name, seconds) in [
            (
                "training.log_flush_seconds",
                self.training.log_flush_seconds,
            ),
            ("api.watch_poll_seconds", self.api.watch_poll_seconds),
            ("api.reconcile_seconds", self.api.reconcile_seconds),
        ] {
            if !(seconds.is_finite() && (0.001..=3600.0).contains(&seconds)) {
                return Err(Error::invalid(
                    name,
                    format!("{name} must be within 0.001 and 3600"),
                ));
            }
        }
        for name in self.bases.keys() {
            layout::validate_name("bases", name)?;
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

impl TrainingConfig {
    /// Returns the folder for bases copied from an object store.
    #[must_use]
    pub fn base_cache(&self) -> PathBuf {
        if self.base_cache.as_os_str().is_empty() {
            std::env::temp_dir().join("togi-bases")
        } else {
            self.base_cache.clone()
        }
    }

    /// Returns the longest time until a step's line is durable.
    #[must_use]
    pub fn log_flush(&self) -> Duration {
        Duration::from_secs_f64(self.log_flush_seconds)
    }
}

impl ApiConfig {
    /// Returns the interval between reads of a watched job's log.
    #[must_use]
    pub fn watch_poll(&self) -> Duration {
        Duration::from_secs_f64(self.watch_poll_seconds)
    }

    /// Returns the interval between listings of names for the policies.
    #[must_use]
    pub fn reconcile(&self) -> Duration {
        Duration::from_secs_f64(self.reconcile_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_complete_and_valid() {
        let config = Config::load(&[]).unwrap();
        assert!(config.has(Role::Api) && config.has(Role::Worker));
        assert!(config.bases.is_empty());
    }

    #[test]
    fn a_setting_out_of_range_is_named() {
        let mut config = Config::load(&[]).unwrap();
        config.api.watch_poll_seconds = f64::NAN;
        assert_eq!(
            config.validate().unwrap_err().field(),
            Some("api.watch_poll_seconds")
        );
        config.roles.clear();
        assert_eq!(config.validate().unwrap_err().field(), Some("roles"));
    }
}
