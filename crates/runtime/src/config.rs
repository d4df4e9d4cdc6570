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
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        roles: Vec<String>,
        nats: NatsConfig,
        store: StoreConfig,
        work: Work,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Work {
        workers: u32,
        name: String,
    }

    const DEFAULT: &str = "roles = ['a', 'b']\n[nats]\nurl = 'nats://a'\n[store]\nurl = 'file:///s'\n[work]\nworkers = 2\nname = 'x'\n";

    fn load_with(files: &[PathBuf], env: &[(&str, &str)]) -> Result<Sample> {
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        load::load_from(
            DEFAULT,
            files,
            "TOGI",
            env,
            |sample: &Sample| match sample.work.workers {
                0 => Err(Error::invalid(
                    "work.workers",
                    "work.workers must be at least 1",
                )),
                _ => Ok(()),
            },
        )
    }

    #[test]
    fn files_go_over_the_default_and_the_environment_over_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("togi.toml");
        std::fs::write(&file, "[work]\nworkers = 3\nname = 'file'\n").unwrap();
        let env = [
            ("TOGI_WORK__NAME", "12"),
            ("TOGI_STORE__OPTIONS__ALLOW_HTTP", "true"),
            ("TOGI_NATS_SERVER", "/not/configuration"),
            ("OTHER_WORK__NAME", "no"),
            ("TOGI_ROLES", "['b']"),
        ];
        let sample = load_with(&[file], &env).unwrap();
        assert_eq!((sample.work.workers, sample.work.name.as_str()), (3, "12"));
        assert_eq!(sample.store.options["allow_http"], "true");
        assert_eq!(sample.roles, ["b"]);
        assert_eq!(sample.nats.ack_wait(), Duration::from_secs(30));
    }

    #[test]
    fn a_wrong_variable_is_named_with_its_value_and_what_is_allowed() {
        let table = [
            (
                "TOGI_WORK__WORKRES",
                "3",
                &["workres", "expected `workers` or `name`"][..],
            ),
            (
                "TOGI_WORK__WORKERS",
                "many",
                &["TOGI_WORK__WORKERS is \"many\"", "expected u32"],
            ),
            (
                "TOGI_WORK__WORKERS",
                "0",
                &["TOGI_WORK__WORKERS is \"0\"", "at least 1"],
            ),
            ("TOGI_WORK", "3", &["TOGI_WORK"]),
            (
                "TOGI_WORK__WORKERS__X",
                "3",
                &["TOGI_WORK__WORKERS__X", "not a section"],
            ),
            (
                "TOGI_ROLES",
                "a",
                &["TOGI_ROLES is \"a\"", "expected a sequence"],
            ),
        ];
        for (name, value, says) in table {
            // Valid variables are not reported.
            let env = [
                (name, value),
                ("TOGI_NATS__REPLICAS", "3"),
                ("TOGI_WORK__NAME", "y"),
            ];
            let Err(error) = load_with(&[], &env) else {
                // A value does not replace a section.
                assert_eq!(name, "TOGI_WORK");
                continue;
            };
            for part in says {
                assert!(error.message().contains(part), "{part}: {error}");
            }
            assert!(!error.message().contains('\n'), "{error}");
        }
        // Of two wrong variables, one is reported.
        let env = [
            ("TOGI_WORK__WORKERS", "many"),
            ("TOGI_NATS__REPLICAS", "few"),
        ];
        let error = load_with(&[], &env).unwrap_err();
        assert!(error.message().starts_with("TOGI_"), "{error}");
    }

    #[test]
    fn a_secret_in_a_wrong_place_is_not_echoed() {
        for (name, value) in [
            ("TOGI_STORE__SECRET_KEY", "hunter2"),
            ("TOGI_STORE__OPTIONS__AWS_SECRET_ACCESS_KEY__X", "hunter2"),
            ("TOGI_NATS__REPLICAS", "nats://user:hunter2@host"),
        ] {
            let error = load_with(&[], &[(name, value)]).unwrap_err();
            assert!(error.message().starts_with(name), "{error}");
            assert!(!error.chain().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_wrong_file_is_named_with_its_line() {
        let error = load_with(&[PathBuf::from("/no/such.toml")], &[]).unwrap_err();
        assert!(error.message().contains("/no/such.toml"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let good = folder.path().join("good.toml");
        std::fs::write(&good, "[work]\nname = 'z'\n").unwrap();
        let bad = folder.path().join("bad.toml");
        for (text, line, says) in [
            ("[work]\nworkers = = 1\n", 2, "bad.toml"),
            (
                "[nats]\n\n[work]\nname = 'a'\nworkers = 'many'\n",
                5,
                "expected u32",
            ),
            ("[work]\n\nworkers = 0\n", 3, "at least 1"),
            ("[work]\nworkres = 1\n", 2, "unknown field `workres`"),
        ] {
            std::fs::write(&bad, text).unwrap();
            for files in [[good.clone(), bad.clone()], [bad.clone(), good.clone()]] {
                let error = load_with(&files, &[("TOGI_WORK__NAME", "y")]).unwrap_err();
                let place = format!("bad.toml, line {line}: ");
                assert!(error.message().contains(&place), "{place}: {error}");
                assert!(error.message().contains(says), "{says}: {error}");
            }
        }
    }

    #[test]
    fn delays_double_and_are_bounded() {
        let nats = NatsConfig::at("nats://a");
        assert_eq!(nats.retry_delay(1), Duration::from_secs(1));
        assert_eq!(nats.retry_delay(4), Duration::from_secs(8));
        assert_eq!(nats.retry_delay(60), Duration::from_secs(300));
    }
}
