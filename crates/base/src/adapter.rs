//! A published adapter: its manifest first, then its files, then its tensors over a base. Whatever
//! is wrong refuses the whole adapter.

use bytes::Bytes;
use togi_common::Generation;
use togi_model::adapter::{self, CONFIG_FILE, Files, TENSORS_FILE};
use togi_model::{Config, Lora};
use togi_runtime::registry::adapter_manifest::{
    ADAPTER_MANIFEST_VERSION, AdapterManifest, Identity,
};
use togi_runtime::{Class, Store, layout};

use crate::error::{Error, Result};
use crate::file;

/// The largest manifest, `adapter_config.json` and model card, in bytes.
pub const MAX_TEXT_BYTES: u64 = 1 << 20;

/// The digests of what an adapter must have been made from to be used over a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeFor {
    /// The base.
    pub base: String,
    /// The tokenizer's file.
    pub tokenizer: String,
    /// The prompt's template.
    pub template: String,
}

/// The first part in which an adapter differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference<'a> {
    /// The part's name.
    pub part: &'static str,
    /// The adapter's digest of it.
    pub theirs: &'a str,
    /// The digest that is needed.
    pub ours: &'a str,
}

impl MadeFor {
    /// Returns the first part of `identity` that differs.
    #[must_use]
    pub fn difference<'a>(&'a self, identity: &'a Identity) -> Option<Difference<'a>> {
        [
            ("base", &identity.base, &self.base),
            ("tokenizer", &identity.tokenizer, &self.tokenizer),
            ("prompt template", &identity.template, &self.template),
        ]
        .into_iter()
        .find(|(_, theirs, ours)| theirs != ours)
        .map(|(part, theirs, ours)| Difference { part, theirs, ours })
    }
}

impl From<&Identity> for MadeFor {
    fn from(identity: &Identity) -> Self {
        Self {
            base: identity.base.clone(),
            tokenizer: identity.tokenizer.clone(),
            template: identity.template.clone(),
        }
    }
}

/// Returns an identity in the form of which a generation is the digest.
#[must_use]
pub fn identity(identity: &Identity) -> adapter::Identity {
    adapter::Identity {
        base: identity.base.clone(),
        base_precision: identity.base_precision.clone(),
        tokenizer: identity.tokenizer.clone(),
        template: identity.template.clone(),
        dataset: identity.dataset.into(),
        recipe: identity.recipe.clone(),
    }
}

/// Reads the manifest of a generation.
///
/// # Errors
/// [`Error::NotPublished`]; [`Error::Manifest`] if it cannot be parsed or is of another
/// generation; the store's.
pub async fn manifest(store: &Store, generation: Generation) -> Result<AdapterManifest> {
    let path = layout::adapter_manifest(generation);
    let read = store.get_bounded(&path, MAX_TEXT_BYTES).await;
    let bytes = read.map_err(|error| match error.class() {
        Class::NotFound => Error::NotPublished(generation),
        Class::ResourceExhausted => Error::Manifest("its manifest is too large".into()),
        _ => error.into(),
    })?;
    let manifest: AdapterManifest = serde_json::from_slice(&bytes)
        .map_err(|error| Error::Manifest(format!("its manifest is not readable: {error}")))?;
    let version = manifest.schema_version;
    if version != ADAPTER_MANIFEST_VERSION {
        return Err(Error::Manifest(format!(
            "its manifest has schema version {version}, not {ADAPTER_MANIFEST_VERSION}"
        )));
    }
    if manifest.generation != generation {
        let other = manifest.generation;
        let reason = format!("wrong generation: its manifest is of {other}, not of {generation}");
        return Err(Error::Manifest(reason));
    }
    Ok(manifest)
}

/// Reads one file of an adapter.
///
/// # Errors
/// As [`file::read`].
pub async fn file(
    store: &Store,
    manifest: &AdapterManifest,
    name: &str,
    max_bytes: u64,
) -> Result<Bytes> {
    let path = layout::adapter_file(manifest.generation, name);
    file::read(store, &path, name, manifest.files.get(name), max_bytes).await
}

/// Reads the two files that PEFT reads; the tensors have at most `max_bytes`.
///
/// # Errors
/// As [`file::read`].
pub async fn files(store: &Store, manifest: &AdapterManifest, max_bytes: u64) -> Result<Files> {
    let (config, tensors) = tokio::try_join!(
        file(store, manifest, CONFIG_FILE, MAX_TEXT_BYTES),
        file(store, manifest, TENSORS_FILE, max_bytes),
    )?;
    Ok(Files {
        config: config.into(),
        tensors: tensors.into(),
    })
}

/// Reads the tensors for a base of `config`, and checks that they are the generation's. Not for
/// async code.
///
/// # Errors
/// [`Error::Model`] if they do not fit the base; [`Error::Manifest`] if they have another digest.
pub fn lora(manifest: &AdapterManifest, files: &Files, config: &Config) -> Result<Lora> {
    let lora = adapter::from_files(&files.config, &files.tensors, config)?;
    let found = adapter::generation(files, &identity(&manifest.identity))?;
    if found != manifest.generation {
        let reason = format!("its files and identity have the digest {found}, not its name");
        return Err(Error::Manifest(reason));
    }
    Ok(lora)
}
