//! A published adapter: its manifest first, then its files, then its tensors over a base. Whatever
//! is wrong refuses the whole adapter.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Deserialize;
use togi_common::Generation;
use togi_model::adapter::{self, CONFIG_FILE, Files, TENSORS_FILE};
use togi_model::{Config, Lora};
use togi_runtime::registry::adapter_manifest::{AdapterManifest, Identity};
use togi_runtime::{Class, Store, layout};
use tokio::task::spawn_blocking;

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
    let checked = manifest.check(generation);
    checked.map_err(|error| Error::Manifest(error.message().to_owned()))?;
    Ok(manifest)
}

/// Reads the manifest of a generation, and checks its rank, alpha and modules against the adapter's
/// own configuration.
///
/// # Errors
/// As [`manifest`] and [`file()`]; [`Error::Manifest`] if they differ.
pub async fn described(store: &Store, generation: Generation) -> Result<AdapterManifest> {
    let manifest = manifest(store, generation).await?;
    let config = file(store, &manifest, CONFIG_FILE, MAX_TEXT_BYTES).await?;
    agrees(&manifest, &config)?;
    Ok(manifest)
}

/// Checks the fields of a manifest that repeat its `adapter_config.json`, which is part of the
/// generation.
fn agrees(manifest: &AdapterManifest, config: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct Repeated {
        r: u32,
        lora_alpha: f64,
        target_modules: Vec<String>,
    }
    let reason = |text: String| Err(Error::Manifest(text));
    let own: Repeated = match serde_json::from_slice(config) {
        Ok(own) => own,
        Err(error) => return reason(format!("{CONFIG_FILE} is not readable: {error}")),
    };
    let AdapterManifest { rank, alpha, .. } = *manifest;
    if rank != own.r {
        return reason(format!(
            "its manifest has rank {rank}, its tensors {}",
            own.r
        ));
    }
    #[allow(clippy::float_cmp)]
    if alpha != own.lora_alpha {
        let theirs = own.lora_alpha;
        return reason(format!(
            "its manifest has alpha {alpha}, its configuration {theirs}"
        ));
    }
    let sorted = |modules: &[String]| modules.iter().cloned().collect::<BTreeSet<_>>();
    if sorted(&manifest.target_modules) != sorted(&own.target_modules) {
        return reason("its manifest has other target_modules than its configuration".into());
    }
    Ok(())
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

/// A published adapter with all files of its folder.
#[derive(Debug, Clone)]
pub struct Whole {
    /// Its manifest.
    pub manifest: AdapterManifest,
    /// The files by name.
    pub files: BTreeMap<String, Bytes>,
}

/// Reads all files of a generation, and checks that they are its own. None has more than
/// `max_bytes`.
///
/// # Errors
/// As [`manifest`] and [`file::read`]; [`Error::Manifest`] if the files have another digest.
pub async fn whole(store: &Store, generation: Generation, max_bytes: u64) -> Result<Whole> {
    let manifest = manifest(store, generation).await?;
    let mut files = BTreeMap::new();
    for name in manifest.files.keys() {
        let bytes = file(store, &manifest, name, max_bytes).await?;
        files.insert(name.clone(), bytes);
    }
    let part = |name: &str| {
        let bytes: Option<&Bytes> = files.get(name);
        let bytes = bytes.ok_or_else(|| Error::Manifest(format!("it has no {name}")))?;
        Ok::<_, Error>(bytes.to_vec())
    };
    let peft = Files {
        config: part(CONFIG_FILE)?,
        tensors: part(TENSORS_FILE)?,
    };
    let identity = identity(&manifest.identity);
    let hashing = spawn_blocking(move || {
        let found = adapter::generation(&peft, &identity)?;
        Ok::<_, Error>((found, peft))
    });
    let (found, peft) = hashing.await??;
    is_named(&manifest, found)?;
    agrees(&manifest, &peft.config)?;
    Ok(Whole { manifest, files })
}

/// Reads the tensors for a base of `config`, and checks that they are the generation's. Not for
/// async code.
///
/// # Errors
/// [`Error::Model`] if they do not fit the base; [`Error::Manifest`] if they have another digest,
/// or the manifest says something else of them.
pub fn lora(manifest: &AdapterManifest, files: &Files, config: &Config) -> Result<Lora> {
    let lora = adapter::from_files(&files.config, &files.tensors, config)?;
    let found = adapter::generation(files, &identity(&manifest.identity))?;
    is_named(manifest, found)?;
    agrees(manifest, &files.config)?;
    Ok(lora)
}

fn is_named(manifest: &AdapterManifest, found: Generation) -> Result<()> {
    if found == manifest.generation {
        return Ok(());
    }
    let reason = format!("its files and identity have the digest {found}, not its name");
    Err(Error::Manifest(reason))
}

#[cfg(test)]
mod tests {
    use togi_model::{LoraConfig, Target};
    use togi_runtime::registry::adapter_manifest::{ADAPTER_MANIFEST_VERSION, AdapterFile};
    use togi_testing::folder_store;

    use super::*;

    const CONFIG: &[u8] = include_bytes!("../../../demo/base/config.json");

    /// An adapter of the demo's base with its true manifest.
    fn published(config: &Config) -> (Files, AdapterManifest) {
        let settings = LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            targets: vec![Target::QueryKeyValue, Target::Dense],
        };
        let files = adapter::to_files(&Lora::init(config, &settings, 1).unwrap(), "demo").unwrap();
        let digest = |c: &str| c.repeat(64);
        let said = Identity {
            base: digest("a"),
            base_precision: "f32".into(),
            tokenizer: digest("b"),
            template: digest("c"),
            dataset: digest("d").parse().unwrap(),
            recipe: digest("e"),
        };
        let entry = |bytes: &[u8]| AdapterFile {
            bytes: bytes.len() as u64,
            sha256: togi_common::Digest::of(bytes).to_string(),
        };
        let manifest = AdapterManifest {
            schema_version: ADAPTER_MANIFEST_VERSION,
            generation: adapter::generation(&files, &identity(&said)).unwrap(),
            identity: said,
            rank: 4,
            alpha: 8.0,
            target_modules: vec!["query_key_value".into(), "dense".into()],
            files: [
                (CONFIG_FILE.to_owned(), entry(&files.config)),
                (TENSORS_FILE.to_owned(), entry(&files.tensors)),
            ]
            .into(),
            job: "job".into(),
            recipe_name: "recipe".into(),
            bit_exact: true,
        };
        (files, manifest)
    }

    #[tokio::test]
    async fn a_manifest_is_believed_only_where_its_adapter_says_the_same() {
        type Edit = fn(&mut AdapterManifest);
        let config = Config::from_json(CONFIG).unwrap();
        let (files, good) = published(&config);
        let edits: [(Option<&str>, Edit); 8] = [
            (None, |_| {}),
            (None, |m| m.target_modules.reverse()),
            (Some("rank 64"), |m| m.rank = 64),
            (Some("alpha 8.5"), |m| m.alpha = 8.5),
            (Some("target_modules"), |m| m.target_modules.truncate(1)),
            (Some("plain file name"), |m| {
                let file = m.files[CONFIG_FILE].clone();
                m.files.insert("../../x".into(), file);
            }),
            (Some("no digest of adapter_config.json"), |m| {
                m.files.get_mut(CONFIG_FILE).unwrap().sha256 = "A".repeat(64);
            }),
            (Some("schema version 2"), |m| m.schema_version = 2),
        ];
        for (says, edit) in edits {
            let (_folder, store) = folder_store().await;
            let mut manifest = good.clone();
            edit(&mut manifest);
            let generation = good.generation;
            for (name, bytes) in [(CONFIG_FILE, &files.config), (TENSORS_FILE, &files.tensors)] {
                let path = layout::adapter_file(generation, name);
                store.put_new(&path, bytes.clone()).await.unwrap();
            }
            let path = layout::adapter_manifest(generation);
            store.put_new_json(&path, &manifest).await.unwrap();
            let described = described(&store, generation).await;
            // Loading checks the same, with the tensors.
            let loaded = async {
                let manifest = super::manifest(&store, generation).await?;
                let files = super::files(&store, &manifest, u64::MAX).await?;
                lora(&manifest, &files, &config)
            };
            let loaded = loaded.await;
            match says {
                None => assert!(described.is_ok() && loaded.is_ok()),
                Some(says) => {
                    let errors = [described.unwrap_err(), loaded.unwrap_err()];
                    for error in errors.map(|error| error.to_string()) {
                        assert!(error.contains(says), "{says}: {error}");
                    }
                }
            }
        }
    }
}
