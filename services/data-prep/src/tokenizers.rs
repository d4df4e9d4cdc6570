//! Finds the tokenizer that a request names: an upload, or the tokenizer of a base.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Weak};

use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use togi_runtime::config::{BaseConfig, BasesConfig};
use togi_runtime::store::connect;
use togi_runtime::store::hub::{Hub, HubRef};
use togi_runtime::{Class, Store, layout};
use togi_tokens::tokenizer::{BESIDE, Tokenizer};
use tokio::task::spawn_blocking;

use crate::error::{Error, Result};

/// Most bytes of a SentencePiece model.
const MAX_MODEL_BYTES: u64 = 64 << 20;
/// File names of a tokenizer in a base's folder; the first one that exists is read.
const NAMES: [&str; 2] = ["spiece.model", "tokenizer.model"];

/// Where a tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TokenizerFrom {
    /// A base of the configuration, by its name.
    Base(String),
    /// An upload, by its SHA-256.
    Upload(String),
}

/// Loads tokenizers. A tokenizer in use is shared instead of being loaded again.
#[derive(Clone)]
pub struct Tokenizers {
    store: Store,
    bases: Arc<BasesConfig>,
    in_use: Arc<Mutex<HashMap<TokenizerFrom, Weak<Tokenizer>>>>,
}

impl Tokenizers {
    /// Loads from a store's uploads and the configuration's bases.
    pub fn new(store: &Store, bases: BasesConfig) -> Self {
        Self {
            store: store.clone(),
            bases: Arc::new(bases),
            in_use: Arc::default(),
        }
    }

    /// Returns a tokenizer that can end a sequence.
    ///
    /// # Errors
    /// With the field: `NotFound` if the upload or base does not exist, `InvalidArgument` if the
    /// file is not a usable SentencePiece model, `FailedPrecondition` if a base has no tokenizer.
    pub async fn load(&self, from: &TokenizerFrom) -> Result<Arc<Tokenizer>> {
        if let Some(tokenizer) = self.known(from) {
            return Ok(tokenizer);
        }
        let (field, files) = match from {
            TokenizerFrom::Upload(id) => {
                let model = self.uploaded(id).await?;
                let beside = Vec::new();
                ("tokenizer.upload", Files { model, beside })
            }
            TokenizerFrom::Base(name) => ("tokenizer.base", self.of_base(name).await?),
        };
        let parsed = spawn_blocking(move || files.parse()).await;
        let tokenizer = parsed
            .map_err(|_| Error::Panicked {
                thread: "tokenizer",
            })?
            .map_err(|e| Error::invalid(field, e.to_string()))?;
        if tokenizer.eos().is_none() {
            let text = "the tokenizer has no end-of-sequence piece";
            return Err(Error::invalid(field, text));
        }
        let tokenizer = Arc::new(tokenizer);
        let mut in_use = self.in_use.lock();
        in_use.retain(|_, weak| weak.strong_count() > 0);
        in_use.insert(from.clone(), Arc::downgrade(&tokenizer));
        Ok(tokenizer)
    }

    fn known(&self, from: &TokenizerFrom) -> Option<Arc<Tokenizer>> {
        let in_use = self.in_use.lock();
        in_use.get(from).and_then(Weak::upgrade)
    }

    async fn uploaded(&self, id: &str) -> Result<Vec<u8>> {
        const FIELD: &str = "tokenizer.upload";
        let bytes = self
            .store
            .get_bounded(&layout::upload(id), MAX_MODEL_BYTES)
            .await;
        match bytes {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) if error.class() == Class::ResourceExhausted => Err(Error::invalid(
                FIELD,
                "the upload is too large for a tokenizer",
            )),
            Err(error) => Err(Error::missing(error, FIELD, "no such upload")),
        }
    }

    async fn of_base(&self, name: &str) -> Result<Files> {
        const FIELD: &str = "tokenizer.base";
        let base = self
            .bases
            .get(name)
            .ok_or_else(|| Error::not_found(FIELD, format!("no base {name:?} is configured")))?;
        let found = if base.url.starts_with("hf://") {
            from_hub(&base.url).await
        } else {
            from_store(base).await
        };
        found
            .map_err(|error| error.with_field(FIELD))?
            .ok_or_else(|| {
                let text = format!("base {name:?} has neither {} nor {}", NAMES[0], NAMES[1]);
                Error::precondition(FIELD, text)
            })
    }
}

/// A tokenizer's files.
struct Files {
    /// The SentencePiece model.
    model: Vec<u8>,
    /// The names and bytes of the files beside it.
    beside: Vec<(&'static str, Vec<u8>)>,
}

impl Files {
    fn parse(self) -> togi_tokens::Result<Tokenizer> {
        let tokenizer = Tokenizer::from_bytes(&self.model)?;
        let beside = self.beside.iter().map(|(name, bytes)| (*name, &bytes[..]));
        tokenizer.check_beside(&beside.collect::<Vec<_>>())?;
        Ok(tokenizer)
    }
}

fn has_tokenizer(folder: &Path) -> bool {
    NAMES.iter().any(|name| folder.join(name).exists())
}

/// Fetches the tokenizer without the weights beside it.
async fn from_hub(url: &str) -> togi_runtime::Result<Option<Files>> {
    let reference = HubRef::parse("url", url)?;
    let hub = Hub::from_environment()?;
    let resolved = hub.resolve(&reference, has_tokenizer).await?;
    let is_part = |name: &&String| {
        let name = name.as_str();
        NAMES.contains(&name) || BESIDE.contains(&name)
    };
    let wanted: Vec<String> = resolved.names.iter().filter(is_part).cloned().collect();
    let snapshot = hub.fetch(&resolved, &wanted).await?;
    let path = |wanted: &str| {
        let mut files = snapshot.files.iter();
        files.find(|(file, _)| file == wanted).map(|(_, path)| path)
    };
    for name in NAMES {
        let Some(model) = path(name) else { continue };
        let model = read(model).await?;
        let mut beside = Vec::new();
        for name in BESIDE {
            if let Some(path) = path(name) {
                beside.push((name, read(path).await?));
            }
        }
        return Ok(Some(Files { model, beside }));
    }
    Ok(None)
}

async fn from_store(base: &BaseConfig) -> togi_runtime::Result<Option<Files>> {
    let store = connect(&base.url, &base.options)?;
    for name in NAMES {
        let Some(model) = get(&store, name).await? else {
            continue;
        };
        let mut beside = Vec::new();
        for name in BESIDE {
            if let Some(bytes) = get(&store, name).await? {
                beside.push((name, bytes));
            }
        }
        return Ok(Some(Files { model, beside }));
    }
    Ok(None)
}

async fn get(store: &dyn ObjectStore, name: &str) -> togi_runtime::Result<Option<Vec<u8>>> {
    match store.get(&name.into()).await {
        Ok(found) if found.meta.size <= MAX_MODEL_BYTES => Ok(Some(found.bytes().await?.into())),
        Ok(_) => Err(too_large()),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn read(path: &Path) -> togi_runtime::Result<Vec<u8>> {
    if tokio::fs::metadata(path).await?.len() > MAX_MODEL_BYTES {
        return Err(too_large());
    }
    let path = path.to_owned();
    let read = spawn_blocking(move || togi_common::file::read(&path)).await;
    let read = read.map_err(|_| togi_runtime::Error::internal("a tokenizer's reader panicked"))?;
    Ok(read?)
}

fn too_large() -> togi_runtime::Error {
    togi_runtime::Error::precondition("the base's tokenizer is too large")
}
