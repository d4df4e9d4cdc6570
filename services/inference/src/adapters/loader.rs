//! Brings one generation from the store into memory: manifest, sizes, digests of the very bytes
//! that are used, identity, then the strict tensor check. Whatever is wrong, the generation is
//! refused whole and nothing else changes.

use std::sync::Arc;

use bytes::Bytes;
use togi_common::Digest;
use togi_model::{Engine, adapter};
use togi_runtime::registry::adapter_manifest::{
    ADAPTER_MANIFEST_VERSION, AdapterManifest, Identity,
};
use togi_runtime::registry::model_card;
use togi_runtime::registry::revisions::BaseMismatch;
use togi_runtime::{Class, Store, layout};

use crate::error::{Error, Result};
use crate::served_adapter::ServedAdapter;

/// Largest manifest, `adapter_config.json` and model card, in bytes.
const MAX_TEXT_BYTES: u64 = 1 << 20;

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
    pub(crate) engine: Arc<Engine>,
    pub(crate) expected: Expected,
    pub(crate) max_bytes: u64,
}

impl Loader {
    /// Loads from the same store over the same base in another precision, that of `engine`.
    pub(super) fn over(&self, engine: Arc<Engine>) -> Self {
        let base_precision = engine.base().precision().name().to_owned();
        Self {
            store: self.store.clone(),
            engine,
            expected: Expected {
                base_precision,
                ..self.expected.clone()
            },
            max_bytes: self.max_bytes,
        }
    }

    /// Loads a generation.
    ///
    /// # Errors
    /// [`Error::BadAdapter`] when it does not fit this base, [`Error::BrokenAdapter`] when its
    /// files are missing or differ from the manifest, [`Error::UnknownAdapter`] when it was never
    /// committed; the store's own errors.
    pub(crate) async fn load(
        &self,
        digest: &str,
        base_mismatch: BaseMismatch,
    ) -> Result<Arc<ServedAdapter>> {
        let manifest = self.manifest(digest).await?;
        self.admit(&manifest.identity.base_precision, base_mismatch)?;
        let config = self
            .file(&manifest, adapter::CONFIG_FILE, MAX_TEXT_BYTES)
            .await?;
        let tensors = self
            .file(&manifest, adapter::TENSORS_FILE, self.max_bytes)
            .await?;
        let engine = self.engine.clone();
        let build = move || build(&engine, &manifest, config, tensors);
        tokio::task::spawn_blocking(build)
            .await
            .map_err(|error| Error::Broken(format!("the check of an adapter ended: {error}")))?
            .map(Arc::new)
    }

    /// Checks that an adapter may be served over the base as it is held here.
    ///
    /// # Errors
    /// [`Error::BadAdapter`] with both precisions.
    pub(crate) fn admit(&self, trained_over: &str, base_mismatch: BaseMismatch) -> Result<()> {
        let served_over = &self.expected.base_precision;
        if trained_over == served_over || !base_mismatch.is_refused() {
            return Ok(());
        }
        Err(Error::BadAdapter(format!(
            "wrong base precision: it was trained over {trained_over}, this replica holds {served_over}, and its promotion does \
             not say allow_base_mismatch"
        )))
    }

    /// Whether the base is held here as it was in the generation's training.
    pub(crate) fn holds_base_of(&self, generation: &ServedAdapter) -> bool {
        generation.trained_over() == self.expected.base_precision
    }

    /// Returns the sample prompts of a generation's card.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub(crate) async fn samples(&self, digest: &str) -> Result<Vec<String>> {
        let manifest = self.manifest(digest).await?;
        let card = self
            .file(&manifest, model_card::CARD_FILE, MAX_TEXT_BYTES)
            .await?;
        check_digest(&manifest, model_card::CARD_FILE, &card)?;
        Ok(model_card::samples(&String::from_utf8_lossy(&card)))
    }

    async fn manifest(&self, digest: &str) -> Result<AdapterManifest> {
        let key = layout::adapter_manifest(digest);
        let bytes =
            self.store
                .get_bounded(&key, MAX_TEXT_BYTES)
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
    engine: &Engine,
    manifest: &AdapterManifest,
    config: Bytes,
    tensors: Bytes,
) -> Result<ServedAdapter> {
    check_digest(manifest, adapter::CONFIG_FILE, &config)?;
    check_digest(manifest, adapter::TENSORS_FILE, &tensors)?;
    let bad = |error: togi_model::Error| Error::BadAdapter(with_cause(&error));
    let files = adapter::Files {
        config: config.into(),
        tensors: tensors.into(),
    };
    let lora = adapter::from_files(&files.config, &files.tensors, engine.config()).map_err(bad)?;
    let got = adapter::generation(&files, &identity(&manifest.identity)).map_err(bad)?;
    if got != manifest.generation {
        let reason = format!("its files and identity have the digest {got}, not its name");
        return Err(Error::BadAdapter(reason));
    }
    let adapter = engine.adapter(&lora).map_err(bad)?;
    let trained_over = manifest.identity.base_precision.clone();
    Ok(ServedAdapter::new(got, trained_over, adapter))
}

fn check_digest(manifest: &AdapterManifest, name: &str, bytes: &[u8]) -> Result<()> {
    let got = Digest::of(bytes).to_string();
    let want = manifest
        .files
        .get(name)
        .map_or("", |entry| entry.sha256.as_str());
    if got == want {
        return Ok(());
    }
    let reason = format!("{name} has sha-256 {got}, its manifest says {want}");
    Err(Error::BrokenAdapter(reason))
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
    adapter::Identity {
        base,
        tokenizer,
        template,
        dataset,
        recipe,
        base_precision,
    }
}

/// An error and its causes in one line.
pub(super) fn with_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
