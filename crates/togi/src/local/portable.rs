//! An adapter as programs outside open it: the files of its PEFT folder, which name the base by a
//! place that PEFT can load.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use serde_json::Value;
use togi_base::adapter::{self, MAX_TEXT_BYTES};
use togi_model::adapter::{CONFIG_FILE, TENSORS_FILE};
use togi_runtime::registry::adapter_manifest::AdapterManifest;
use togi_runtime::registry::base_place::BasePlace;
use togi_runtime::registry::model_card::CARD_FILE;
use togi_runtime::store::hub::HubRef;
use togi_runtime::{Class, Generation, Store, layout};

use crate::error::{Error, Result};
use crate::local::named::{self, Found, MAX_BYTES, Registered};
use crate::session::Session;

/// The files of a folder by name.
pub type Files = BTreeMap<String, Bytes>;

/// An adapter's folder in memory, as it is published.
pub struct Portable {
    /// Its generation; `None` for a folder, which may come from anywhere.
    pub generation: Option<Generation>,
    /// The place of its base, by which others open it.
    pub base: BasePlace,
    /// Where the base's files were when it was trained, if that is known.
    origin: Option<String>,
    files: Files,
}

impl Portable {
    /// Reads an adapter by a name as [`named::find`] does. `base` names another place of the base.
    ///
    /// # Errors
    /// As [`named::find`]; a file is missing or damaged; the base's place has no known form.
    pub async fn read(name: &Path, base: Option<&str>, session: &Session) -> Result<Self> {
        let said = base.map(place).transpose()?;
        match named::find(name, session).await? {
            Found::Registered(registered) => Self::of_registry(name, registered, said).await,
            Found::Folder(folder) => {
                let files = of_disk(&folder)?;
                let own = own_place(&files)?;
                Ok(Self {
                    generation: None,
                    base: said.unwrap_or(own),
                    origin: None,
                    files,
                })
            }
        }
    }

    /// Reads a published adapter, as [`Portable::read`].
    ///
    /// # Errors
    /// As [`named::registered`] and [`Portable::read`].
    pub async fn published(name: &str, base: Option<&str>, session: &Session) -> Result<Self> {
        let said = base.map(place).transpose()?;
        let registered = named::registered(name, session).await?;
        Self::of_registry(name.as_ref(), registered, said).await
    }

    async fn of_registry(
        name: &Path,
        registered: Registered,
        said: Option<BasePlace>,
    ) -> Result<Self> {
        let Registered { store, generation } = registered;
        let whole = adapter::whole(&store, generation, MAX_BYTES).await;
        let whole = whole.map_err(|error| named::unfit(name, error))?;
        let origin = origin(&store, &whole.manifest).await?;
        let own = own_place(&whole.files)?;
        let known = said.or_else(|| BasePlace::of_origin(origin.as_deref()?));
        Ok(Self {
            generation: Some(generation),
            base: known.unwrap_or(own),
            origin,
            files: whole.files,
        })
    }

    /// Whether transformers can load the base by its place, from this machine.
    #[must_use]
    pub fn is_openable(&self) -> bool {
        self.base.is_repository() || Path::new(&self.base.name).join("config.json").exists()
    }

    /// Says where the base is, for a message that it cannot be opened.
    #[must_use]
    pub fn whereabouts(&self) -> &str {
        self.origin.as_deref().unwrap_or(&self.base.name)
    }

    /// Returns the folder's files as they are at `adapter`, a folder or a repository.
    ///
    /// # Errors
    /// The configuration is not readable.
    pub fn files_at(&self, adapter: &str) -> Result<Files> {
        placed(self.files.clone(), &self.base, adapter)
    }
}

/// Returns the files of an adapter at `adapter`, with their base at a place.
///
/// # Errors
/// The configuration is not readable.
pub fn placed(mut files: Files, base: &BasePlace, adapter: &str) -> Result<Files> {
    let Some(config) = files.get(CONFIG_FILE) else {
        return Ok(files);
    };
    let old = BasePlace::of_config(config)?;
    let config = base.in_config(config)?;
    if let Some(card) = files.get(CARD_FILE) {
        let card = String::from_utf8_lossy(card);
        let card = base.in_card(&card, &old.name, adapter);
        files.insert(CARD_FILE.to_owned(), card.into());
    }
    files.insert(CONFIG_FILE.to_owned(), config.into());
    Ok(files)
}

/// Returns the place of a folder on this machine.
///
/// # Errors
/// It does not exist, or its path is not text.
pub fn of_folder(folder: &Path) -> Result<BasePlace> {
    let whole = fs::canonicalize(folder).map_err(|error| Error::file(folder, error))?;
    let name = whole
        .into_os_string()
        .into_string()
        .map_err(|_| Error::unfit("base", folder, "its path is not UTF-8"))?;
    Ok(BasePlace {
        name,
        revision: None,
    })
}

/// Reads a place as a command line names it: a folder, `OWNER/NAME`, or `hf://OWNER/NAME@REVISION`.
fn place(text: &str) -> Result<BasePlace> {
    let folder = Path::new(text);
    if folder.is_dir() {
        return of_folder(folder);
    }
    let url = match text.strip_prefix("hf://") {
        Some(_) => text.to_owned(),
        None => format!("hf://{text}"),
    };
    let reference = HubRef::parse("--base", &url).ok();
    let place = reference.and_then(|reference| BasePlace::of_reference(&reference));
    place.ok_or_else(|| {
        let reason = format!("--base: {text:?} is no folder and no OWNER/NAME[@REVISION] of a hub");
        Error::Usage(reason)
    })
}

/// Returns where the base's files were when an adapter was trained; older reports do not say it.
async fn origin(store: &Store, manifest: &AdapterManifest) -> Result<Option<String>> {
    let Ok(job) = manifest.job.parse() else {
        return Ok(None);
    };
    match store
        .get_bounded(&layout::job_report(&job), MAX_TEXT_BYTES)
        .await
    {
        Ok(report) => {
            let report: Option<Value> = serde_json::from_slice(&report).ok();
            let origin =
                report.and_then(|report| report["base_origin"].as_str().map(str::to_owned));
            Ok(origin)
        }
        Err(error) if error.class() == Class::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn own_place(files: &Files) -> Result<BasePlace> {
    let config = files.get(CONFIG_FILE).map_or(&[][..], |bytes| bytes);
    Ok(BasePlace::of_config(config)?)
}

/// Reads the files of a PEFT folder that others need.
fn of_disk(folder: &Path) -> Result<Files> {
    let mut files = Files::new();
    for (name, is_needed) in [
        (CONFIG_FILE, true),
        (TENSORS_FILE, true),
        (CARD_FILE, false),
    ] {
        let path = folder.join(name);
        if is_needed || path.exists() {
            let bytes = fs::read(&path).map_err(|error| Error::file(path, error))?;
            files.insert(name.to_owned(), bytes.into());
        }
    }
    Ok(files)
}
