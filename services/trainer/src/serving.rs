//! The generation that an alias names, read for being measured beside a new one.

use bytes::Bytes;
use togi_common::Digest;
use togi_model::{Config, Lora, adapter};
use togi_runtime::registry::adapter_manifest::{AdapterManifest, Identity};
use togi_runtime::registry::aliases::Aliases;
use togi_runtime::{Class, Store, layout};

use crate::error::{Error, Result};

/// A generation that is served.
pub(crate) struct Serving {
    /// What it is.
    pub(crate) manifest: AdapterManifest,
    /// Its tensors.
    pub(crate) lora: Lora,
}

/// The generation that an alias names.
pub(crate) enum Current {
    /// The alias does not exist yet.
    None,
    /// An adapter over the same base.
    Comparable(Box<Serving>),
    /// An adapter that cannot be measured over this base: its manifest, and what differs.
    Incomparable(Box<AdapterManifest>, &'static str),
}

/// Reads what an alias names; `ours` is what the new adapter is made from, over a base of `config`.
///
/// # Errors
/// [`Error::Damaged`] if its files are not what its manifest says; the store's.
pub(crate) async fn at(
    store: &Store,
    aliases: &Aliases,
    alias: &str,
    ours: &Identity,
    config: &Config,
) -> Result<Current> {
    if alias.is_empty() {
        return Ok(Current::None);
    }
    let Some(alias) = aliases.current(alias).await? else {
        return Ok(Current::None);
    };
    let path = layout::adapter_manifest(alias.generation());
    let manifest: AdapterManifest = serde_json::from_slice(&store.get(&path).await?)
        .map_err(|error| Error::damaged(path.to_string(), error))?;
    let theirs = &manifest.identity;
    let other = [
        ("base", theirs.base != ours.base),
        ("tokenizer", theirs.tokenizer != ours.tokenizer),
        ("prompt template", theirs.template != ours.template),
    ];
    if let Some((what, _)) = other.into_iter().find(|(_, differs)| *differs) {
        return Ok(Current::Incomparable(Box::new(manifest), what));
    }
    let settings = file(store, &manifest, adapter::CONFIG_FILE).await?;
    let tensors = file(store, &manifest, adapter::TENSORS_FILE).await?;
    let lora = adapter::from_files(&settings, &tensors, config)?;
    Ok(Current::Comparable(Box::new(Serving { manifest, lora })))
}

async fn file(store: &Store, manifest: &AdapterManifest, name: &str) -> Result<Bytes> {
    let path = layout::adapter_file(&manifest.generation, name);
    let bytes = match store.get(&path).await {
        Err(error) if error.class() == Class::NotFound => {
            return Err(Error::damaged(path.to_string(), "it is missing"));
        }
        read => read?,
    };
    let expected = manifest.files.get(name).map(|file| file.sha256.as_str());
    if expected != Some(Digest::of(&bytes).to_string().as_str()) {
        let reason = "its bytes are not those of the manifest";
        return Err(Error::damaged(path.to_string(), reason));
    }
    Ok(bytes)
}
