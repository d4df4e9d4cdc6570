//! Configuration: a commented default, then files, then the environment; later sources override
//! earlier ones. The result is one validated value that is passed down; there is no global.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use toml::Value;

use crate::error::{Error, Result};

mod load;
pub use load::{load, load_files, named};

/// Exit code of a process with an invalid configuration.
pub const EXIT_CODE: u8 = 64;

/// Connection to NATS.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatsConfig {
    /// `nats://host:port`; several are separated by commas.
    pub url: String,
    /// Seconds of silence after which a worker's job goes to another worker.
    #[serde(default = "thirty")]
    pub ack_wait_seconds: f64,
    /// Seconds before a job's second attempt; the delay doubles with each attempt.
    #[serde(default = "one")]
    pub retry_delay_seconds: f64,
    /// Copies of each stream and bucket: 1, or 3 in a cluster.
    #[serde(default = "single")]
    pub replicas: usize,
    /// File with NATS credentials (JWT and seed), if the server requires them.
    #[serde(default)]
    pub credentials: Option<PathBuf>,
}

impl NatsConfig {
    /// Returns the configuration for a server, with defaults for the rest.
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ack_wait_seconds: thirty(),
            retry_delay_seconds: one(),
            replicas: single(),
            credentials: None,
        }
    }

    /// Checks the ranges that the types cannot express.
    ///
    /// # Errors
    /// `InvalidArgument` with the setting's name.
    pub fn check(&self) -> Result<()> {
        if !(1..=5).contains(&self.replicas) {
            let reason = "nats.replicas must be from 1 to 5";
            return Err(Error::invalid("nats.replicas", reason));
        }
        for (name, seconds, least, most) in [
            ("nats.ack_wait_seconds", self.ack_wait_seconds, 0.3, 3600.0),
            (
                "nats.retry_delay_seconds",
                self.retry_delay_seconds,
                0.01,
                300.0,
            ),
        ] {
            if !(least..=most).contains(&seconds) {
                let reason = format!("{name} must be within {least} and {most}");
                return Err(Error::invalid(name, reason));
            }
        }
        Ok(())
    }

    /// Returns how long a worker may be silent.
    #[must_use]
    pub fn ack_wait(&self) -> Duration {
        Duration::from_secs_f64(self.ack_wait_seconds.clamp(0.3, 3600.0))
    }

    /// Returns the delay after the n-th failed attempt, from 1. It doubles up to five minutes.
    #[must_use]
    pub fn retry_delay(&self, failed: u32) -> Duration {
        let factor = f64::from(1u32 << failed.saturating_sub(1).min(16));
        Duration::from_secs_f64((self.retry_delay_seconds * factor).clamp(0.01, 300.0))
    }
}

fn thirty() -> f64 {
    30.0
}

fn one() -> f64 {
    1.0
}

fn single() -> usize {
    1
}

/// Where objects are stored.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// `file:///folder`, `s3://bucket/prefix`, `gs://…` or `az://…`.
    pub url: String,
    /// Options of the store, named as in the `object_store` crate (`endpoint`, `region`,
    /// `allow_http`, …). Secrets come from the environment (`AWS_SECRET_ACCESS_KEY`, …) or from
    /// `secrets`.
    #[serde(default, deserialize_with = "scalars")]
    pub options: BTreeMap<String, String>,
    /// File with more options, one `name=value` per line, for values that must appear neither in
    /// the environment nor in a manifest.
    #[serde(default)]
    pub secrets: Option<PathBuf>,
}

impl StoreConfig {
    /// Returns all options; those in the secrets file override the others.
    ///
    /// # Errors
    /// `InvalidArgument` with field `store.secrets` if the file cannot be read or a line is not
    /// `name=value`. The error shows no content of the file.
    pub fn all_options(&self) -> Result<BTreeMap<String, String>> {
        let mut options = self.options.clone();
        let Some(path) = &self.secrets else {
            return Ok(options);
        };
        let refuse = |why: String| {
            let message = format!("store.secrets: {} {why}", path.display());
            Error::invalid("store.secrets", message)
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| refuse(format!("cannot be read: {}", error.kind())))?;
        let lines = text.lines().enumerate();
        for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
            let (name, value) = line
                .split_once('=')
                .ok_or_else(|| refuse(format!("has no name=value in line {}", number + 1)))?;
            options.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
        Ok(options)
    }

    /// Returns the configuration of a store in a local folder.
    ///
    /// # Errors
    /// If the path is relative and the current folder cannot be read.
    pub fn folder(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path)?;
        let url = url::Url::from_directory_path(&path)
            .map_err(|()| Error::invalid("store.url", "the folder cannot be written as a URL"))?;
        Ok(Self {
            url: url.into(),
            options: BTreeMap::new(),
            secrets: None,
        })
    }
}

/// Logging and telemetry export.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// OTLP/gRPC endpoint, for example `http://127.0.0.1:4317`. If empty,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` is used; without either, nothing is exported.
    pub otlp_endpoint: String,
    /// `human` or `json`.
    pub log_format: LogFormat,
    /// As in `RUST_LOG`, for example `info,async_nats=warn,togi_trainer=debug`.
    pub log_filter: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: String::new(),
            log_format: LogFormat::Human,
            log_filter: "info,async_nats=warn,hf_hub=warn".to_owned(),
        }
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For a terminal.
    Human,
    /// One JSON object per line.
    Json,
}

/// The addresses on which a process listens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenConfig {
    /// gRPC.
    pub grpc: SocketAddr,
    /// Metrics, liveness and readiness.
    pub admin: SocketAddr,
}

/// A base that requests may name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseConfig {
    /// `file:///folder`, an object store's URL, or `hf://OWNER/NAME[@REVISION]`.
    pub url: String,
    /// Options of an object store, as in [`StoreConfig::options`].
    #[serde(default, deserialize_with = "scalars")]
    pub options: BTreeMap<String, String>,
    /// Precision of the weights for inference, named as in a recipe. The trainer uses the recipe's.
    #[serde(default)]
    pub precision: Option<String>,
}

/// The bases by name.
pub type BasesConfig = BTreeMap<String, BaseConfig>;

/// Reads options that are strings, numbers or booleans as strings, which stores take.
fn scalars<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<BTreeMap<String, String>, D::Error> {
    let values = BTreeMap::<String, Value>::deserialize(deserializer)?;
    values
        .into_iter()
        .map(|(key, value)| match value {
            Value::String(text) => Ok((key, text)),
            Value::Integer(number) => Ok((key, number.to_string())),
            Value::Float(number) => Ok((key, number.to_string())),
            Value::Boolean(truth) => Ok((key, truth.to_string())),
            _ => Err(serde::de::Error::custom(format!(
                "option \"{key}\" is not a plain value"
            ))),
        })
        .collect()
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod delays {
    use super::*;

    #[test]
    fn delays_double_and_are_bounded() {
        let nats = NatsConfig::at("nats://a");
        assert_eq!(nats.retry_delay(1), Duration::from_secs(1));
        assert_eq!(nats.retry_delay(4), Duration::from_secs(8));
        assert_eq!(nats.retry_delay(60), Duration::from_secs(300));
    }
}
