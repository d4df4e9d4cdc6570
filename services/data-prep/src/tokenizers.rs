//! Finds the tokenizer that a request names: a base's own, or an uploaded one.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use object_store::ObjectStoreExt;
use togi_runtime::config::{BaseConfig, BasesConfig};
use togi_runtime::store::connect;
use togi_runtime::store::hub::{Hub, HubRef};
use togi_runtime::{Class, Error, Store, layout};
use togi_tokens::tokenizer::Tokenizer;
use tokio::task::spawn_blocking;

use crate::request::TokenizerFrom;
use crate::{Error as Fault, Result};

/// Most bytes of a SentencePiece model.
const MAX_MODEL_BYTES: u64 = 64 << 20;
/// What a base's folder calls its tokenizer, the first that is there.
const NAMES: [&str; 2] = ["spiece.model", "tokenizer.model"];

/// Loads tokenizers; one that is in use is not loaded again.
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
    /// `NotFound` where the upload or base does not exist, `InvalidArgument` where the file is no
    /// SentencePiece model that can be used, `FailedPrecondition` where a base has none: each
    /// with the field.
    pub async fn load(&self, from: &TokenizerFrom) -> Result<Arc<Tokenizer>> {
        if let Some(tokenizer) = self.known(from) {
            return Ok(tokenizer);
        }
        let (field, model) = match from {
            TokenizerFrom::Upload(id) => ("tokenizer.upload", self.uploaded(id).await?),
            TokenizerFrom::Base(name) => ("tokenizer.base", self.of_base(name).await?),
        };
        let parsed = spawn_blocking(move || Tokenizer::from_bytes(&model)).await;
        let parsed = parsed.map_err(|_| Fault::Panicked {
            thread: "tokenizer",
        })?;
        let tokenizer = parsed.map_err(|e| Error::invalid(field, e.to_string()))?;
        if tokenizer.eos().is_none() {
            let text = "the tokenizer has no end-of-sequence piece";
            return Err(Error::invalid(field, text));
        }
        let tokenizer = Arc::new(tokenizer);
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        in_use.retain(|_, weak| weak.strong_count() > 0);
        in_use.insert(from.clone(), Arc::downgrade(&tokenizer));
        Ok(tokenizer)
    }

    fn known(&self, from: &TokenizerFrom) -> Option<Arc<Tokenizer>> {
        let in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
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
            Err(error) if error.class() == Class::NotFound => {
                Err(Error::not_found("no such upload")
                    .with_field(FIELD)
                    .with_source(error))
            }
            Err(error) if error.class() == Class::ResourceExhausted => Err(Error::invalid(
                FIELD,
                "the upload is too large for a tokenizer",
            )),
            Err(error) => Err(error),
        }
    }

    async fn of_base(&self, name: &str) -> Result<Vec<u8>> {
        const FIELD: &str = "tokenizer.base";
        let base = self.bases.get(name).ok_or_else(|| {
            Error::not_found(format!("no base {name:?} is configured")).with_field(FIELD)
        })?;
        let named = |e: Error| e.with_field(FIELD);
        let found = if base.url.starts_with("hf://") {
            from_hub(&base.url).await.map_err(named)?
        } else {
            from_store(base).await.map_err(named)?
        };
        if let Some(model) = found {
            return Ok(model);
        }
        let text = format!("base {name:?} has neither {} nor {}", NAMES[0], NAMES[1]);
        Err(Error::precondition(text).with_field(FIELD))
    }
}

/// Fetches the tokenizer alone: the weights beside it are not needed here.
async fn from_hub(url: &str) -> Result<Option<Vec<u8>>> {
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

async fn from_store(base: &BaseConfig) -> Result<Option<Vec<u8>>> {
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

async fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    if tokio::fs::metadata(path).await?.len() > MAX_MODEL_BYTES {
        return Err(too_large());
    }
    Ok(Some(tokio::fs::read(path).await?))
}

fn too_large() -> Error {
    Error::precondition("the base's tokenizer is too large")
}
