//! Configuration: a commented default, files over it, the environment over those. The result is one value, validated by
//! its types, passed down; nothing reads it from a global.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use toml::{Table, Value};

use crate::{Class, Error, Result};

/// Exit code of a process whose configuration is wrong.
pub const EXIT_CODE: u8 = 64;

/// How to reach NATS.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatsConfig {
    /// `nats://host:port`, several by comma.
    pub url: String,
    /// How long a worker may be silent before its job is given to another, in seconds.
    #[serde(default = "thirty")]
    pub ack_wait_seconds: f64,
    /// First delay before a failed attempt is repeated, in seconds; it doubles from one attempt to the next.
    #[serde(default = "one")]
    pub retry_delay_seconds: f64,
    /// Copies of each stream and bucket: 1, or 3 in a cluster.
    #[serde(default = "single")]
    pub replicas: usize,
    /// File with NATS credentials (JWT and seed), if the server wants them.
    #[serde(default)]
    pub credentials: Option<PathBuf>,
}

impl NatsConfig {
    /// Returns the configuration for a server with everything else at its default.
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ack_wait_seconds: thirty(),
            retry_delay_seconds: one(),
            replicas: single(),
            credentials: None,
        }
    }

    /// Returns how long a worker may be silent.
    #[must_use]
    pub fn ack_wait(&self) -> Duration {
        Duration::from_secs_f64(self.ack_wait_seconds.clamp(0.3, 3600.0))
    }

    /// Returns the delay after the n-th failed attempt, from 1: doubling, at most five minutes.
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

/// Where objects are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// `file:///folder`, `s3://bucket/prefix`, `gs://…` or `az://…`.
    pub url: String,
    /// Options of the store, by the names of the `object_store` crate (`endpoint`, `region`, `allow_http`, …). Secrets come
    /// from the environment (`AWS_SECRET_ACCESS_KEY`, …), or from `secrets`.
    #[serde(default, deserialize_with = "scalars")]
    pub options: BTreeMap<String, String>,
    /// File with more options, a line `name=value` for each: those that no environment and no manifest should show.
    #[serde(default)]
    pub secrets: Option<PathBuf>,
}

impl StoreConfig {
    /// Returns the options, those of the secrets' file over the others.
    ///
    /// # Errors
    /// `InvalidArgument` with field `store.secrets` if the file cannot be read, or a line is none; nothing of it is shown.
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
    /// When the current folder is needed to make the path absolute and cannot be read.
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

/// What is logged and exported.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// OTLP/gRPC endpoint, for example `http://127.0.0.1:4317`; empty: `OTEL_EXPORTER_OTLP_ENDPOINT`, else no export.
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

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

/// Where a process listens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenConfig {
    /// gRPC.
    pub grpc: SocketAddr,
    /// Metrics, liveness and readiness.
    pub admin: SocketAddr,
}

/// One base that requests may name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseConfig {
    /// `file:///folder`, an object store's URL, or `hf://OWNER/NAME[@REVISION]`.
    pub url: String,
    /// Options of an object store, as in [`StoreConfig::options`].
    #[serde(default, deserialize_with = "scalars")]
    pub options: BTreeMap<String, String>,
    /// How inference holds its weights, by a recipe's name for it. The trainer goes by the recipe.
    #[serde(default)]
    pub precision: Option<String>,
}

/// The bases by name.
pub type BasesConfig = BTreeMap<String, BaseConfig>;

/// Options may be written as strings, numbers or booleans; stores take strings.
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

/// Returns the configuration: the default, then each file, then `<PREFIX>_SECTION__KEY` of the environment, the later over
/// the earlier. Variables without `__` count where they name a setting of the default that is in no section.
///
/// # Errors
/// `InvalidArgument` with what is wrong and where: a file that is missing or not TOML, an unknown key, a wrong type. A process
/// ends with [`EXIT_CODE`] then.
pub fn load<T: DeserializeOwned>(
    default_toml: &str,
    files: &[PathBuf],
    env_prefix: &str,
) -> Result<T> {
    load_from(default_toml, files, env_prefix, std::env::vars())
}

fn load_from<T: DeserializeOwned>(
    default_toml: &str,
    files: &[PathBuf],
    env_prefix: &str,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<T> {
    let mut merged = parse("the default configuration", default_toml)?;
    for file in files {
        let shown = file.display();
        let text = std::fs::read_to_string(file).map_err(|error| {
            wrong(format!(
                "configuration file {shown} cannot be read: {}",
                error.kind()
            ))
        })?;
        merge(
            &mut merged,
            parse(&format!("configuration file {shown}"), &text)?,
        );
    }
    let mut variables: Vec<_> = variables
        .filter_map(|(name, value)| {
            let path = name.strip_prefix(env_prefix)?.strip_prefix('_')?;
            let path = path.to_ascii_lowercase();
            let is_setting =
                path.contains("__") || merged.get(&path).is_some_and(|default| !default.is_table());
            is_setting.then_some((path, value))
        })
        .collect();
    variables.sort();
    for (path, value) in variables {
        let path: Vec<&str> = path.split("__").collect();
        set(&mut merged, &path, &value)?;
    }
    Value::Table(merged)
        .try_into()
        .map_err(|error: toml::de::Error| wrong(format!("configuration: {}", one_line(&error))))
}

fn parse(what: &str, text: &str) -> Result<Table> {
    text.parse::<Table>().map_err(|error| {
        let line = error
            .span()
            .map_or(0, |span| text[..span.start].lines().count().max(1));
        wrong(format!("{what}, line {line}: {}", error.message()))
    })
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// Sets one value from the environment. Where a string stands now, the text is taken as it is; else it is read as TOML, and as
/// a string if it is none.
fn set(table: &mut Table, path: &[&str], text: &str) -> Result<()> {
    let [key, rest @ ..] = path else {
        return Ok(());
    };
    if rest.is_empty() {
        let value = match table.get(*key) {
            Some(Value::String(_)) => Value::String(text.to_owned()),
            _ => format!("value = {text}")
                .parse::<Table>()
                .ok()
                .and_then(|mut parsed| parsed.remove("value"))
                .unwrap_or_else(|| Value::String(text.to_owned())),
        };
        table.insert((*key).to_owned(), value);
        return Ok(());
    }
    // Names of bases and the like have hyphens, which variables cannot have.
    let hyphened = key.replace('_', "-");
    let key = if !table.contains_key(*key) && table.contains_key(&hyphened) {
        hyphened
    } else {
        (*key).to_owned()
    };
    match table
        .entry(&key)
        .or_insert_with(|| Value::Table(Table::new()))
    {
        Value::Table(inner) => set(inner, rest, text),
        _ => Err(wrong(format!(
            "environment: {key} is a value, not a section"
        ))),
    }
}

fn wrong(message: String) -> Error {
    Error::new(Class::InvalidArgument, message)
}

fn one_line(error: &toml::de::Error) -> String {
    error
        .to_string()
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
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
        load_from(DEFAULT, files, "TOGI", env)
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
    fn what_is_wrong_is_named() {
        let error = load_with(&[], &[("TOGI_WORK__WORKRES", "3")]).unwrap_err();
        assert!(error.message().contains("workres"), "{error}");
        let error = load_with(&[], &[("TOGI_WORK__WORKERS", "many")]).unwrap_err();
        assert!(
            error.message().contains("workers") || error.message().contains("many"),
            "{error}"
        );
        let error = load_with(&[PathBuf::from("/no/such.toml")], &[]).unwrap_err();
        assert!(error.message().contains("/no/such.toml"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bad.toml");
        std::fs::write(&file, "[work]\nworkers = = 1\n").unwrap();
        let error = load_with(&[file], &[]).unwrap_err();
        assert!(error.message().contains("line 2"), "{error}");
    }

    #[test]
    fn delays_double_and_are_bounded() {
        let nats = NatsConfig::at("nats://a");
        assert_eq!(nats.retry_delay(1), Duration::from_secs(1));
        assert_eq!(nats.retry_delay(4), Duration::from_secs(8));
        assert_eq!(nats.retry_delay(60), Duration::from_secs(300));
    }
}
