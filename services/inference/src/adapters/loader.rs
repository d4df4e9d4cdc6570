//! Loads one generation from the store onto the device. It checks the manifest, the sizes, the
//! digests of the bytes in memory, the identity, then the tensors. Any fault refuses the whole
//! generation.

use std::sync::Arc;

use togi_base::adapter::{self, Difference, MadeFor};
use togi_common::Generation;
use togi_model::Engine;
use togi_model::adapter::Files;
use togi_runtime::Store;
use togi_runtime::registry::adapter_manifest::AdapterManifest;
use togi_runtime::registry::model_card;
use togi_runtime::registry::revisions::BaseMismatch;

use crate::error::{Error, Result};
use crate::served_adapter::ServedAdapter;

/// The identity that an adapter needs to be served here: digests and the base's precision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) made_for: MadeFor,
    pub(crate) base_precision: String,
}

/// Loads generations over one base.
pub(crate) struct Loader {
    pub(crate) store: Store,
    pub(crate) engine: Arc<Engine>,
    pub(crate) expected: Expected,
    pub(crate) max_bytes: u64,
}

impl Loader {
    /// Returns a loader from the same store over the same base in the precision of `engine`.
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
    /// [`Error::BadAdapter`] if it does not fit this base, [`Error::BrokenAdapter`] if files are
    /// missing or differ from the manifest, [`Error::UnknownAdapter`] if it was never committed;
    /// the store's errors.
    pub(crate) async fn load(
        &self,
        generation: Generation,
        base_mismatch: BaseMismatch,
    ) -> Result<Arc<ServedAdapter>> {
        let manifest = self.manifest(generation).await?;
        self.admit(&manifest.identity.base_precision, base_mismatch)?;
        let files = adapter::files(&self.store, &manifest, self.max_bytes).await?;
        let engine = self.engine.clone();
        let build = move || build(&engine, manifest, &files);
        tokio::task::spawn_blocking(build)
            .await
            .map_err(|error| Error::Broken(format!("the check of an adapter ended: {error}")))?
            .map(Arc::new)
    }

    /// Checks that an adapter may be served over this base's precision.
    ///
    /// # Errors
    /// [`Error::BadAdapter`], which names both precisions.
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

    /// Whether the base has the precision that the adapter was trained over.
    pub(crate) fn holds_base_of(&self, adapter: &ServedAdapter) -> bool {
        adapter.trained_over() == self.expected.base_precision
    }

    /// Returns the sample prompts of a generation's model card.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub(crate) async fn samples(&self, generation: Generation) -> Result<Vec<String>> {
        let manifest = self.manifest(generation).await?;
        let (name, most) = (model_card::CARD_FILE, adapter::MAX_TEXT_BYTES);
        let card = adapter::file(&self.store, &manifest, name, most).await?;
        Ok(model_card::samples(&String::from_utf8_lossy(&card)))
    }

    async fn manifest(&self, generation: Generation) -> Result<AdapterManifest> {
        let manifest = adapter::manifest(&self.store, generation).await?;
        match self.expected.made_for.difference(&manifest.identity) {
            None => Ok(manifest),
            Some(Difference { part, theirs, ours }) => Err(Error::BadAdapter(format!(
                "wrong {part}: it was made for {theirs}, this replica has {ours}"
            ))),
        }
    }
}

/// Checks the tensors and copies them to the device. Must not be called from async code.
fn build(engine: &Engine, manifest: AdapterManifest, files: &Files) -> Result<ServedAdapter> {
    let lora = adapter::lora(&manifest, files, engine.config())?;
    let adapter = engine.adapter(&lora).map_err(togi_base::Error::from)?;
    let trained_over = manifest.identity.base_precision;
    Ok(ServedAdapter::new(
        manifest.generation,
        trained_over,
        adapter,
    ))
}
