//! Loads one generation from the store into main memory. It checks the manifest, the sizes, the
//! digests of the bytes in memory, the identity, the tensors, then that the device can ever hold
//! it. Any fault refuses the whole generation.

use std::sync::Arc;

use togi_base::adapter::{self, Difference, MadeFor};
use togi_common::Generation;
use togi_model::adapter::Files;
use togi_model::{Engine, Lora};
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
    /// The bytes of all adapters on the engine's device.
    pub(crate) device_bytes: u64,
}

/// A generation in main memory.
pub(crate) struct Checked {
    pub(crate) served: Arc<ServedAdapter>,
    pub(crate) lora: Lora,
}

impl Checked {
    /// Returns the bytes that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        size_of_val(self.lora.values()) as u64
    }
}

impl Loader {
    /// Returns a loader from the same store over the same base in the precision of `engine`, which
    /// has no pool.
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
            device_bytes: u64::MAX,
        }
    }

    /// Loads a generation.
    ///
    /// # Errors
    /// [`Error::BadAdapter`] if it does not fit this base or can never be on the device,
    /// [`Error::BrokenAdapter`] if files are
    /// missing or differ from the manifest, [`Error::UnknownAdapter`] if it was never committed;
    /// the store's errors.
    pub(crate) async fn load(
        &self,
        generation: Generation,
        base_mismatch: BaseMismatch,
    ) -> Result<Checked> {
        let manifest = self.manifest(generation).await?;
        self.admit(&manifest.identity.base_precision, base_mismatch)?;
        let files = adapter::files(&self.store, &manifest, self.max_bytes).await?;
        let (engine, device_bytes) = (self.engine.clone(), self.device_bytes);
        let check = move || check(&engine, device_bytes, manifest, &files);
        tokio::task::spawn_blocking(check)
            .await
            .map_err(|error| Error::Broken(format!("the check of an adapter ended: {error}")))?
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

/// Checks the tensors. Must not be called from async code.
fn check(
    engine: &Engine,
    device_bytes: u64,
    manifest: AdapterManifest,
    files: &Files,
) -> Result<Checked> {
    let lora = adapter::lora(&manifest, files, engine.config())?;
    let ranks = lora.modules().iter().map(|module| module.rank);
    let bytes = engine.adapter_bytes(&lora);
    check_fits(
        (ranks.max().unwrap_or(0), engine.largest_rank()),
        (bytes, device_bytes),
    )?;
    let trained_over = manifest.identity.base_precision;
    Ok(Checked {
        served: Arc::new(ServedAdapter::new(manifest.generation, trained_over, bytes)),
        lora,
    })
}

/// Checks that an adapter can be on the device: its rank and bytes, each with the most.
fn check_fits(
    (rank, largest): (usize, Option<usize>),
    (bytes, device_bytes): (u64, u64),
) -> Result<()> {
    if let Some(largest) = largest
        && rank > largest
    {
        return Err(Error::BadAdapter(format!(
            "its largest rank is {rank}, and decoding on this device takes at most {largest}"
        )));
    }
    if bytes > device_bytes {
        return Err(Error::BadAdapter(format!(
            "it takes {bytes} bytes on the device, and adapters.device_bytes allows {device_bytes} \
             for all adapters together"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_that_can_never_be_on_the_device_is_refused_with_the_figures() {
        let table = [
            ((256, Some(256)), (100, 100), None),
            ((9000, None), (1, 100), None),
            (
                (257, Some(256)),
                (1, 100),
                Some("rank is 257, and decoding on this device takes at most 256"),
            ),
            (
                (8, Some(256)),
                (101, 100),
                Some("101 bytes on the device, and adapters.device_bytes allows 100"),
            ),
        ];
        for (rank, bytes, expected) in table {
            let refused = check_fits(rank, bytes).map_err(|error| error.to_string());
            match (refused, expected) {
                (Ok(()), None) => {}
                (Err(reason), Some(part)) => assert!(reason.contains(part), "{reason}"),
                (other, _) => panic!("{rank:?} {bytes:?}: {other:?}"),
            }
        }
    }
}
