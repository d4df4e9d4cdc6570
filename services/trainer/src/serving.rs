//! The generation that an alias names, read for being measured beside a new one.

use togi_base::adapter::{self, Difference, MadeFor};
use togi_model::{Config, Lora};
use togi_runtime::registry::adapter_manifest::{AdapterManifest, Identity};
use togi_runtime::registry::aliases::Aliases;
use togi_runtime::{Store, layout};
use tokio::task::spawn_blocking;

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
    let alias = layout::parse("alias", alias)?;
    let Some(alias) = aliases.current(&alias).await? else {
        return Ok(Current::None);
    };
    let generation = alias.generation();
    let unreadable = |error| Error::unreadable(&format!("adapter {generation}"), error);
    let manifest = adapter::manifest(store, generation).await;
    let manifest = manifest.map_err(unreadable)?;
    if let Some(Difference { part, .. }) = MadeFor::from(ours).difference(&manifest.identity) {
        return Ok(Current::Incomparable(Box::new(manifest), part));
    }
    let files = adapter::files(store, &manifest, u64::MAX).await;
    let files = files.map_err(unreadable)?;
    let config = config.clone();
    let reading = spawn_blocking(move || {
        let lora = adapter::lora(&manifest, &files, &config)?;
        Ok(Box::new(Serving { manifest, lora }))
    });
    let read = reading.await.map_err(|_| Error::Panicked)?;
    read.map(Current::Comparable).map_err(unreadable)
}
