//! Settings: `default.toml` is the full list with comments; files and the environment change it.
//! What comes out of [`Config::load`] is checked.

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

/// The settings that files and the environment change.
pub const DEFAULTS: &str = include_str!("../default.toml");

/// All settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What this process does.
    pub roles: BTreeSet<Role>,
    /// Where workers compute.
    pub device: DeviceName,
    /// Data-prep's gRPC endpoint: rows are read from there.
    pub data_prep: String,
    /// Bases by name.
    pub bases: BasesConfig,
    /// Training.
    pub training: TrainingConfig,
    /// Answers.
    pub api: ApiConfig,
    /// Where to listen.
    pub listen: ListenConfig,
    /// Coordination.
    pub nats: NatsConfig,
    /// The object store.
    pub store: StoreConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

/// A part that a process can play.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Answers requests and keeps the policies; needs no device.
    Api,
    /// Takes jobs.
    Worker,
}

/// How jobs are worked on.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    /// Rows read ahead of their use, in bytes.
    pub prefetch_bytes: u32,
    /// Memory of the device that a job may plan for, in bytes; 0: what is available.
    pub memory_bytes: u64,
    /// Jobs after whose end a worker's process stops; 0: never.
    pub jobs: u64,
    /// Longest time for which a step's line is not yet durable, in seconds.
    pub log_flush_seconds: f64,
    /// Folder for bases that are copied from an object store; empty: the system's temporary one.
    pub base_cache: PathBuf,
}

/// How requests are answered and policies kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiConfig {
    /// How often a watched job's log is read, in seconds.
    pub watch_poll_seconds: f64,
    /// How often data sets' names are listed for the policies, in seconds.
    pub reconcile_seconds: f64,
}

impl Config {
    /// Returns the settings: the defaults, then each file, then the environment.
    ///
    /// # Errors
    /// What is wrong, with its name.
    pub fn load(files: &[PathBuf]) -> Result<Config> {
        config::load(DEFAULTS, files, "TOGI", Config::validate)
    }

    /// Whether this process plays a part.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Checks what the types do not.
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
    /// Returns the folder for bases that are copied from an object store.
    #[must_use]
    pub fn base_cache(&self) -> PathBuf {
        if self.base_cache.as_os_str().is_empty() {
            std::env::temp_dir().join("togi-bases")
        } else {
            self.base_cache.clone()
        }
    }

    /// Longest time for which a step's line is not yet durable.
    #[must_use]
    pub fn log_flush(&self) -> Duration {
        Duration::from_secs_f64(self.log_flush_seconds)
    }
}

impl ApiConfig {
    /// How often a watched job's log is read.
    #[must_use]
    pub fn watch_poll(&self) -> Duration {
        Duration::from_secs_f64(self.watch_poll_seconds)
    }

    /// How often names are listed for the policies.
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
