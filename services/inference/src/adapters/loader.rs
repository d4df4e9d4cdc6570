//! Brings one generation from the store into memory: manifest, sizes, digests of the very bytes that are used, identity, then
//! the strict tensor check. Whatever is wrong, the generation is refused whole and nothing else changes.

use std::sync::Arc;

use bytes::Bytes;
use togi_model::{Engine, adapter};
use togi_runtime::layout;
use togi_runtime::registry::{ADAPTER_MANIFEST_VERSION, AdapterManifest, Identity};
use togi_runtime::{Class, Store};

use crate::error::{Error, Result};
use crate::generation::Generation;

/// Largest manifest, and largest `adapter_config.json`, in bytes.
const MAX_JSON_BYTES: u64 = 1 << 20;

/// What an adapter must have been made from to be served here: digests, and how the base is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) base: String,
    pub(crate) base_precision: String,
    pub(crate) tokenizer: String,
    pub(crate) template: String,
}

/// Loads generations over one base.
pub(crate) struct Loader {
    pub(crate) store: Store,
    pub(crate) network: Arc<Engine>,
    pub(crate) expected: Expected,
    pub(crate) max_bytes: u64,
}

impl Loader {
    /// Loads a generation.
    ///
    /// # Errors
    /// [`Error::BadAdapter`] when it does not fit this base, [`Error::BrokenAdapter`] when its files are missing or differ from
    /// the manifest, [`Error::UnknownAdapter`] when it was never committed; the store's own errors.
    pub(crate) async fn load(&self, digest: &str) -> Result<Arc<Generation>> {
        let manifest = self.manifest(digest).await?;
        let config = self
            .file(&manifest, adapter::CONFIG_FILE, MAX_JSON_BYTES)
            .await?;
        let tensors = self
            .file(&manifest, adapter::TENSORS_FILE, self.max_bytes)
            .await?;
        let network = self.network.clone();
        let build = move || build(&network, &manifest, config, tensors);
        tokio::task::spawn_blocking(build)
            .await
            .map_err(|error| Error::Broken(format!("the check of an adapter ended: {error}")))?
            .map(Arc::new)
    }

    async fn manifest(&self, digest: &str) -> Result<AdapterManifest> {
        let key = layout::adapter_manifest(digest);
        let bytes =
            self.store
                .get_bounded(&key, MAX_JSON_BYTES)
                .await
                .map_err(|error| match error.class() {
                    Class::NotFound => Error::UnknownAdapter(digest.to_owned()),
                    Class::ResourceExhausted => {
                        Error::BadAdapter("its manifest is too large".into())
                    }
                    _ => error.into(),
                })?;
        let manifest: AdapterManifest = serde_json::from_slice(&bytes)
            .map_err(|error| Error::BadAdapter(format!("its manifest is not readable: {error}")))?;
        check_manifest(digest, &manifest, &self.expected)?;
        Ok(manifest)
    }

    /// Reads a file that has the size that the manifest says, within the limit.
    async fn file(&self, manifest: &AdapterManifest, name: &str, max_bytes: u64) -> Result<Bytes> {
        let entry = manifest
            .files
            .get(name)
            .ok_or_else(|| Error::BadAdapter(format!("its manifest does not name {name}")))?;
        if entry.bytes > max_bytes {
            let reason = format!("{name} has {} bytes, more than {max_bytes}", entry.bytes);
            return Err(Error::BadAdapter(reason));
        }
        let key = layout::adapter_file(&manifest.generation, name);
        let bytes = self
            .store
            .get_bounded(&key, entry.bytes)
            .await
            .map_err(|error| match error.class() {
                Class::NotFound => Error::BrokenAdapter(format!("{name} is missing")),
                Class::ResourceExhausted => {
                    Error::BrokenAdapter(format!("{name} is larger than its manifest says"))
                }
                _ => error.into(),
            })?;
        if bytes.len() as u64 != entry.bytes {
            let got = bytes.len();
            let reason = format!("{name} has {got} bytes, its manifest says {}", entry.bytes);
            return Err(Error::BrokenAdapter(reason));
        }
        Ok(bytes)
    }
}

fn check_manifest(digest: &str, manifest: &AdapterManifest, expected: &Expected) -> Result<()> {
    if manifest.schema_version != ADAPTER_MANIFEST_VERSION {
        let reason = format!(
            "its manifest has schema version {}, not {ADAPTER_MANIFEST_VERSION}",
            manifest.schema_version
        );
        return Err(Error::BadAdapter(reason));
    }
    let identity = &manifest.identity;
    let pairs = [
        ("generation", manifest.generation.as_str(), digest),
        ("base", &identity.base, &expected.base),
        (
            "base precision",
            &identity.base_precision,
            &expected.base_precision,
        ),
        ("tokenizer", &identity.tokenizer, &expected.tokenizer),
        ("template", &identity.template, &expected.template),
    ];
    for (what, got, want) in pairs {
        if got != want {
            let reason = format!("wrong {what}: it was made for {got}, this replica has {want}");
            return Err(Error::BadAdapter(reason));
        }
    }
    Ok(())
}

/// The part that computes: digests, then tensors. Runs on a thread of its own.
fn build(
    network: &Engine,
    manifest: &AdapterManifest,
    config: Bytes,
    tensors: Bytes,
) -> Result<Generation> {
    for (name, bytes) in [
        (adapter::CONFIG_FILE, &config),
        (adapter::TENSORS_FILE, &tensors),
    ] {
        let got = togi_tokens::digest::sha256_hex(bytes);
        let want = manifest
            .files
            .get(name)
            .map_or("", |entry| entry.sha256.as_str());
        if got != want {
            let reason = format!("{name} has sha-256 {got}, its manifest says {want}");
            return Err(Error::BrokenAdapter(reason));
        }
    }
    let bad = |error: togi_model::Error| Error::BadAdapter(with_cause(&error));
    let files = adapter::Files {
        config: config.into(),
        tensors: tensors.into(),
    };
    let lora = adapter::from_files(&files.config, &files.tensors, network.config()).map_err(bad)?;
    let got = adapter::generation(&files, &identity(&manifest.identity)).map_err(bad)?;
    if got != manifest.generation {
        let reason = format!("its files and identity have the digest {got}, not its name");
        return Err(Error::BadAdapter(reason));
    }
    let adapter = network.adapter(&lora).map_err(bad)?;
    Ok(Generation::new(got, adapter))
}

fn identity(identity: &Identity) -> adapter::Identity {
    let Identity {
        base,
        base_precision,
        tokenizer,
        template,
        dataset,
        recipe,
    } = identity.clone();
    let base_representation = base_precision;
    adapter::Identity {
        base,
        tokenizer,
        template,
        dataset,
        recipe,
        base_representation,
    }
}

/// An error and its causes in one line.
fn with_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
