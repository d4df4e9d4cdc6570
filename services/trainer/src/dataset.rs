//! Data sets as the trainer needs them: by digest or by name, from their committed manifests.

use togi_runtime::{Class, Store, layout, registry::NameRevision};
use togi_tokens::DatasetManifest;

use crate::error::{Error, Result};

/// Returns the manifest of a data set named by its digest, or by its name for the newest revision.
///
/// # Errors
/// `NotFound` with field `dataset`; [`Error::Damaged`] if the manifest is none.
pub async fn find(store: &Store, dataset: &str) -> Result<DatasetManifest> {
    if layout::validate_digest("dataset", dataset).is_ok() {
        return manifest(store, dataset).await;
    }
    layout::validate_name("dataset", dataset)?;
    match newest(store, dataset).await? {
        Some((_, revision)) => manifest(store, &revision.dataset).await,
        None => Err(unknown(dataset)),
    }
}

/// Returns the newest revision of a data set's name and its number; `None` if nobody has used the name.
///
/// # Errors
/// The store's; [`Error::Damaged`] if the revision is none.
pub async fn newest(store: &Store, name: &str) -> Result<Option<(u64, NameRevision)>> {
    let Some((n, path)) = store.newest_revision(&layout::name_revisions(name)).await? else {
        return Ok(None);
    };
    let bytes = store.get(&path).await?;
    let revision =
        serde_json::from_slice(&bytes).map_err(|error| Error::damaged(path.to_string(), error))?;
    Ok(Some((n, revision)))
}

async fn manifest(store: &Store, digest: &str) -> Result<DatasetManifest> {
    let path = layout::dataset_manifest(digest);
    match store.get(&path).await {
        Ok(bytes) => Ok(DatasetManifest::from_json(&bytes)?),
        Err(error) if error.class() == Class::NotFound => Err(unknown(digest)),
        Err(error) => Err(error.into()),
    }
}

fn unknown(dataset: &str) -> Error {
    togi_runtime::Error::not_found(format!("dataset {dataset:?} does not exist"))
        .with_field("dataset")
        .into()
}
