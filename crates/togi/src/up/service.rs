//! The configuration of each service: its defaults, the user's `[services.NAME]` over them, and the
//! settings that `togi up` decides over both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use togi_runtime::config::{NatsConfig, StoreConfig};
use togi_runtime::rpc::server::Services;
use togi_runtime::{Context, Tasks};
use toml::{Table, Value};

use crate::embedded;
use crate::error::{Error, Result};
use crate::settings::BaseSection;
use crate::up::options::Options;
use crate::up_state::DataFolder;

const SERVICES: [&str; 3] = ["data-prep", "trainer", "inference"];

/// The services' configurations.
#[derive(Debug)]
pub(super) struct Configs {
    data_prep: togi_data_prep::Config,
    trainer: togi_trainer::Config,
    inference: Option<togi_inference::Config>,
}

impl Configs {
    /// Returns the settings of the shared connection to this address: the trainer's.
    pub(super) fn nats(&self, url: &str) -> NatsConfig {
        NatsConfig {
            url: url.to_owned(),
            ..self.trainer.nats.clone()
        }
    }
}

/// Writes each service's configuration file into the data folder, where it can be inspected, and
/// loads it.
pub(super) fn configs(
    options: &Options,
    folder: &DataFolder,
    endpoint: &str,
    store: &StoreConfig,
    demo: &Path,
) -> Result<Configs> {
    if let Some(unknown) = options
        .file
        .services
        .keys()
        .find(|name| !SERVICES.contains(&name.as_str()))
    {
        let known = SERVICES.join(", ");
        return Err(Error::Configuration(format!(
            "togi.toml: services.{unknown} is none of {known}"
        )));
    }
    let bases = bases(options, demo)?;
    if let Some(serve) = options
        .serve
        .as_ref()
        .filter(|serve| !bases.contains_key(*serve))
    {
        let known = bases.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(Error::Configuration(format!(
            "base {serve:?} cannot be served: it is none of {known}"
        )));
    }
    let common = || {
        let mut table = Table::new();
        let mut store_table = Table::new();
        store_table.insert("url".into(), store.url.clone().into());
        let pairs = store
            .options
            .iter()
            .map(|(key, value)| (key.clone(), value.clone().into()));
        store_table.insert("options".into(), Value::Table(pairs.collect()));
        table.insert("store".into(), store_table.into());
        table.insert("bases".into(), Value::Table(bases.clone()));
        table
    };
    let computing = || {
        let mut table = common();
        table.insert("device".into(), options.device.to_string().into());
        table
    };
    let mut trainer = computing();
    trainer.insert("data_prep".into(), endpoint.into());
    let file = |name, decided| write(options, folder, name, decided);
    let wrong = |error: togi_runtime::Error| Error::Configuration(error.to_string());
    let inference = |serve: &String| {
        let mut inference = computing();
        inference.insert("base".into(), serve.clone().into());
        togi_inference::Config::load(&[file("inference", inference)?]).map_err(wrong)
    };
    let mut configs = Configs {
        data_prep: togi_data_prep::Config::load(&[file("data-prep", common())?]).map_err(wrong)?,
        trainer: togi_trainer::Config::load(&[file("trainer", trainer)?]).map_err(wrong)?,
        inference: options.serve.as_ref().map(inference).transpose()?,
    };
    // The services also read TOGI_DEVICE, which must not override the flag.
    configs.trainer.device = options.device;
    if let Some(inference) = &mut configs.inference {
        inference.device = options.device;
    }
    Ok(configs)
}

/// Starts the services over the shared context.
pub(super) async fn start(
    configs: Configs,
    context: &Context,
    services: &mut Services,
    tasks: &mut Tasks,
) -> Result<()> {
    togi_data_prep::start(configs.data_prep, context, services, tasks).await?;
    togi_trainer::start(configs.trainer, context, services, tasks).await?;
    if let Some(inference) = configs.inference {
        togi_inference::start(inference, context, services, tasks).await?;
    }
    Ok(())
}

/// The embedded base and the user's.
fn bases(options: &Options, demo: &Path) -> Result<Table> {
    let mut bases = Table::new();
    let demo = StoreConfig::folder(demo)?.url;
    let demo = BaseSection {
        url: demo,
        precision: None,
    };
    let own = (embedded::BASE.to_owned(), demo);
    let mut sections = BTreeMap::from([own]);
    sections.extend(options.file.bases.clone());
    for (name, precision) in &options.precisions {
        let Some(section) = sections.get_mut(name) else {
            let known = sections.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(Error::Configuration(format!(
                "--base-precision: {name:?} is none of {known}"
            )));
        };
        section.precision = Some(precision.clone());
    }
    for (name, section) in sections {
        togi_runtime::layout::validate_name("base", &name)
            .map_err(|error| Error::Configuration(error.to_string()))?;
        let mut base = Table::new();
        base.insert("url".into(), section.url.into());
        if let Some(precision) = section.precision {
            base.insert("precision".into(), precision.into());
        }
        bases.insert(name, base.into());
    }
    Ok(bases)
}

fn write(options: &Options, folder: &DataFolder, name: &str, decided: Table) -> Result<PathBuf> {
    let mut table = options.file.services.get(name).cloned().unwrap_or_default();
    table.extend(decided);
    let configs = folder.path().join("config");
    let path = configs.join(format!("{name}.toml"));
    let text = toml::to_string(&table).map_err(|error| Error::Configuration(error.to_string()))?;
    let text = format!(
        "# Written by `togi up` at each start: changes are lost. Settings come from togi.toml.\n{text}"
    );
    fs::create_dir_all(&configs)
        .and_then(|()| fs::write(&path, text))
        .map_err(|error| Error::file(&path, error))?;
    Ok(path)
}
