//! Finds the tokenizer that a request names: an upload, or the tokenizer of a base.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Weak};

use object_store::ObjectStoreExt;
use parking_lot::Mutex;
use togi_runtime::config::{BaseConfig, BasesConfig};
use togi_runtime::store::connect;
use togi_runtime::store::hub::{Hub, HubRef};
use togi_runtime::{Class, Store, layout};
use togi_tokens::tokenizer::Tokenizer;
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
        let (field, model) = match from {
            TokenizerFrom::Upload(id) => ("tokenizer.upload", self.uploaded(id).await?),
            TokenizerFrom::Base(name) => ("tokenizer.base", self.of_base(name).await?),
        };
        let parsed = spawn_blocking(move || Tokenizer::from_bytes(&model)).await;
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

    async fn of_base(&self, name: &str) -> Result<Vec<u8>> {
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

/// Fetches the tokenizer without the weights beside it.
async fn from_hub(url: &str) -> togi_runtime::Result<Option<Vec<u8>>> {
    let reference = HubRef::parse("url", url)?;
    let snapshot = Hub::from_environment()?
        .snapshot(&reference, |name| NAMES.contains(&name))
        .await?;
    for name in NAMES {
        if let Some((_, path)) = snapshot.files.iter().find(|(file, _)| file == name) {
            return read(path).await;
        }
    }
    Ok(None)
}

async fn from_store(base: &BaseConfig) -> togi_runtime::Result<Option<Vec<u8>>> {
    let store = connect(&base.url, &base.options)?;
    for name in NAMES {
        match store.get(&name.into()).await {
            Ok(found) if found.meta.size <= MAX_MODEL_BYTES => {
                return Ok(Some(found.bytes().await?.into()));
            }
            Ok(_) => return Err(too_large()),
            Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

async fn read(path: &Path) -> togi_runtime::Result<Option<Vec<u8>>> {
    if tokio::fs::metadata(path).await?.len() > MAX_MODEL_BYTES {
        return Err(too_large());
    }
    Ok(Some(tokio::fs::read(path).await?))
}

fn too_large() -> togi_runtime::Error {
    togi_runtime::Error::precondition("the base's tokenizer is too large")
}
