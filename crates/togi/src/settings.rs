//! The client's settings, in this order: flags, environment, project file, user file, the state of
//! a running `togi up`, defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use serde::Deserialize;
use togi_model::DeviceName;
use togi_runtime::config::{self, TelemetryConfig};

use crate::error::{Error, Result};
use crate::globals::Flags;
use crate::output::Format;
use crate::up_state::UpState;

/// The default address of `togi up`.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7670";
/// Name of the project file.
pub const PROJECT_FILE: &str = "togi.toml";
/// The default data folder of `togi up`.
pub const DEFAULT_DATA: &str = ".togi";

/// A project or user file: `togi.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// Where all three services answer.
    pub endpoint: Option<String>,
    /// Where data-prep answers, if elsewhere.
    pub data_prep: Option<String>,
    /// Where the trainer answers, if elsewhere.
    pub trainer: Option<String>,
    /// Where inference answers, if elsewhere.
    pub inference: Option<String>,
    /// The data folder of `togi up`.
    pub data: Option<PathBuf>,
    /// Where `togi up`, and commands that need no services, compute: cpu, cuda or cuda:N.
    pub device: Option<DeviceName>,
    /// The form of results.
    pub output: Option<Format>,
    /// The event log.
    pub nats: NatsSection,
    /// The object store.
    pub store: StoreSection,
    /// Logs of `togi up`, and where traces go.
    pub telemetry: TelemetryConfig,
    /// Settings of `togi up` alone.
    pub up: UpSection,
    /// Further bases of `togi up`, by name.
    pub bases: BTreeMap<String, BaseSection>,
    /// Each service's own settings for `togi up`, in the form of its default.toml: data-prep,
    /// trainer, inference.
    pub services: BTreeMap<String, toml::Table>,
}

/// `[nats]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsSection {
    /// Its address.
    pub url: Option<String>,
}

/// `[store]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSection {
    /// Its address.
    pub url: Option<String>,
    /// Options of the object store, as its driver names them.
    pub options: BTreeMap<String, String>,
}

/// `[up]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpSection {
    /// Address of the gRPC port.
    pub listen: Option<String>,
    /// Address of the admin port.
    pub admin: Option<String>,
    /// The base that inference serves.
    pub serve: Option<String>,
}

/// `[bases.NAME]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseSection {
    /// A folder: file://, an object-store URL, or hf://OWNER/NAME[@REVISION].
    pub url: String,
    /// How inference holds it, as in its default.toml.
    pub precision: Option<String>,
}

/// The settings that commands use.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where data-prep answers.
    pub data_prep: String,
    /// Where the trainer answers.
    pub trainer: String,
    /// Where inference answers.
    pub inference: String,
    /// The address that a flag, a variable or a file names; `None` means the services that run
    /// here.
    pub named_endpoint: Option<String>,
    /// The address of NATS, if a setting names it or a `togi up` runs.
    pub nats: Option<String>,
    /// The NATS server that flag, variable or file names.
    pub named_nats: Option<String>,
    /// The object store, if a setting names it or a `togi up` runs.
    pub store: Option<String>,
    /// The object store that flag, variable or file names.
    pub named_store: Option<String>,
    /// Options of the object store.
    pub store_options: BTreeMap<String, String>,
    /// The data folder.
    pub data: PathBuf,
    /// Where this process computes.
    pub device: DeviceName,
    /// The form of results.
    pub output: Format,
    /// The files' contents, for `togi up`.
    pub file: File,
}

impl Settings {
    /// Returns the settings of a client whose services all answer at one address.
    pub fn at(endpoint: &str) -> Self {
        Self {
            data_prep: endpoint.to_owned(),
            trainer: endpoint.to_owned(),
            inference: endpoint.to_owned(),
            named_endpoint: Some(endpoint.to_owned()),
            nats: None,
            named_nats: None,
            store: None,
            named_store: None,
            store_options: BTreeMap::new(),
            data: DEFAULT_DATA.into(),
            device: DeviceName::Cpu,
            output: Format::default(),
            file: File::default(),
        }
    }

    /// Reads the files and combines all sources.
    ///
    /// # Errors
    /// [`Error::Configuration`] for a wrong file, [`Error::File`] for a named file that does not
    /// exist.
    pub fn load(flags: &Flags) -> Result<Self> {
        let file = read_files(flags.config.as_deref())?;
        let data = flags
            .data
            .clone()
            .or(file.data.clone())
            .unwrap_or_else(|| DEFAULT_DATA.into());
        let running = UpState::of_running(&data);
        let endpoint = flags
            .endpoint
            .clone()
            .or(file.endpoint.clone())
            .or(running.as_ref().map(|up| up.endpoint.clone()))
            .unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        // A flag or variable names all services at once; the file may name them apart.
        let service = |of_file: &Option<String>| match (&flags.endpoint, of_file) {
            (None, Some(apart)) => apart.clone(),
            _ => endpoint.clone(),
        };
        let of_file = file.endpoint.clone().or(file.trainer.clone());
        let named_nats = flags.nats.clone().or(file.nats.url.clone());
        let named_store = flags.store.clone().or(file.store.url.clone());
        Ok(Self {
            data_prep: service(&file.data_prep),
            trainer: service(&file.trainer),
            inference: service(&file.inference),
            named_endpoint: flags.endpoint.clone().or(of_file),
            nats: named_nats
                .clone()
                .or(running.as_ref().map(|up| up.nats.url.clone())),
            named_nats,
            store: named_store.clone().or(running.map(|up| up.store)),
            named_store,
            store_options: file.store.options.clone(),
            data,
            device: flags.device.or(file.device).unwrap_or_default(),
            output: flags.output.or(file.output).unwrap_or_default(),
            file,
        })
    }
}

/// Reads the user file and, over it, the project file.
fn read_files(named: Option<&Path>) -> Result<File> {
    if let Some(named) = named {
        fs::metadata(named).map_err(|error| Error::file(named, error))?;
    }
    let user = user_file().filter(|path| path.is_file());
    let here = Some(Path::new(PROJECT_FILE)).filter(|path| path.is_file());
    let project = named.or(here).map(Path::to_owned);
    let files: Vec<PathBuf> = user.into_iter().chain(project).collect();
    config::load_files(&files).map_err(|error| Error::Configuration(error.to_string()))
}

/// Returns the user file's path: `$XDG_CONFIG_HOME/togi/togi.toml`.
fn user_file() -> Option<PathBuf> {
    let folder = env::var_os("XDG_CONFIG_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".config")))?;
    Some(folder.join("togi").join(PROJECT_FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(text: &str) -> (tempfile::TempDir, Flags) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("togi.toml");
        fs::write(&path, text).unwrap();
        let flags = Flags {
            config: Some(path),
            data: Some(folder.path().join("nothing-runs-here")),
            ..Flags::default()
        };
        (folder, flags)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_default() {
        let (_folder, mut flags) =
            project("endpoint = 'http://file:1'\ntrainer = 'http://file:2'\noutput = 'json'");
        let settings = Settings::load(&flags).unwrap();
        assert_eq!(settings.inference, "http://file:1");
        assert_eq!(settings.trainer, "http://file:2");
        assert_eq!(settings.output, Format::Json);
        flags.endpoint = Some("http://flag:3".into());
        flags.output = Some(Format::Table);
        let settings = Settings::load(&flags).unwrap();
        assert_eq!(settings.trainer, "http://flag:3");
        assert_eq!(settings.output, Format::Table);
        let (_folder, flags) = project("");
        assert_eq!(Settings::load(&flags).unwrap().data_prep, DEFAULT_ENDPOINT);
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line() {
        let (_folder, flags) = project("output = 'json'\nendpont = 'x'\n");
        let error = Settings::load(&flags).unwrap_err();
        assert_eq!(error.exit_code(), 64);
        assert!(
            error
                .to_string()
                .contains("togi.toml, line 2: unknown field `endpont`"),
            "{error}"
        );
    }
}
