//! Data sets as the trainer needs them: by digest or by name, from their committed manifests.

use togi_runtime::registry::revisions::NameRevision;
use togi_runtime::{Class, DatasetId, Store, layout};
use togi_tokens::DatasetManifest;

use crate::error::{Error, Result};

/// Returns the manifest of a data set named by its digest, or by its name for the newest revision.
///
/// # Errors
/// `NotFound` with field `dataset`; [`Error::Damaged`] if the manifest cannot be parsed.
pub(crate) async fn find(store: &Store, dataset: &str) -> Result<DatasetManifest> {
    if let Ok(id) = dataset.parse() {
        return manifest(store, id).await;
    }
    layout::validate_name("dataset", dataset)?;
    match newest(store, dataset).await? {
        Some((_, revision)) => manifest(store, revision.dataset).await,
        None => Err(unknown(store, dataset).await),
    }
}

/// Returns the newest revision of a data set's name and its number; `None` if nobody has used the
/// name.
///
/// # Errors
/// The store's; [`Error::Damaged`] if the revision cannot be parsed.
pub(crate) async fn newest(store: &Store, name: &str) -> Result<Option<(u64, NameRevision)>> {
    let newest = store.newest_revision(&layout::name_revisions(name)).await?;
    let Some((n, _)) = newest else {
        return Ok(None);
    };
    Ok(revision(store, name, n).await?.map(|found| (n, found)))
}

/// Returns a revision of a data set's name, if it is there.
///
/// # Errors
/// As [`newest`].
pub(crate) async fn revision(store: &Store, name: &str, n: u64) -> Result<Option<NameRevision>> {
    let path = layout::name_revision(name, n);
    let bytes = match store.get(&path).await {
        Ok(bytes) => bytes,
        Err(error) if error.class() == Class::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let revision = serde_json::from_slice(&bytes);
    let revision = revision.map_err(|error| Error::damaged(path.to_string(), error))?;
    Ok(Some(revision))
}

/// Returns the manifest of a data set.
///
/// # Errors
/// As [`find`].
pub(crate) async fn manifest(store: &Store, id: DatasetId) -> Result<DatasetManifest> {
    let path = layout::dataset_manifest(id);
    match store.get(&path).await {
        Ok(bytes) => Ok(DatasetManifest::of(&bytes, id)?),
        Err(error) if error.class() == Class::NotFound => {
            Err(unknown(store, &id.to_string()).await)
        }
        Err(error) => Err(error.into()),
    }
}

/// The error of a data set that is not there.
pub(crate) async fn unknown(store: &Store, dataset: &str) -> Error {
    let near = store.nearest(&layout::names(), dataset).await;
    togi_runtime::Error::not_found(format!("dataset {dataset:?} does not exist{near}"))
        .with_field("dataset")
        .into()
}
