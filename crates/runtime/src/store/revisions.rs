//! Revisions: the objects `<n>.json` of a folder, of which the highest counts. Each is created and
//! never changed.

use bytes::Bytes;
use object_store::ObjectStore as _;
use object_store::path::Path;

use crate::error::{Class, Error, Result};
use crate::layout;
use crate::store::Store;

const CONFLICTS: u32 = 64;

impl Store {
    /// Returns the highest revision in a folder of `<n>.json`, and its key.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn newest_revision(&self, folder: &Path) -> Result<Option<(u64, Path)>> {
        let found = self.inner.list_with_delimiter(Some(folder)).await?;
        let numbers = found
            .objects
            .iter()
            .filter_map(|meta| layout::parse_revision(&meta.location));
        Ok(numbers.max().map(|n| (n, layout::revision(folder, n))))
    }

    /// Writes the revision after the highest one and returns its number. Two writers at once both
    /// write one. `bytes` makes the object of a number; it is called again when another writer took
    /// that number.
    ///
    /// # Errors
    /// `Aborted` after 64 lost races; the error of `bytes`; those of the store.
    pub async fn append_revision(
        &self,
        folder: &Path,
        bytes: impl Fn(u64) -> Result<Bytes> + Send,
    ) -> Result<u64> {
        for _ in 0..CONFLICTS {
            let n = self
                .newest_revision(folder)
                .await?
                .map_or(1, |(n, _)| n + 1);
            if self.put_revision(folder, n, bytes(n)?).await? {
                return Ok(n);
            }
        }
        Err(Error::new(
            Class::Aborted,
            format!("{folder} is changed by others all the time"),
        ))
    }

    /// Writes exactly this revision. Returns false if it exists with other bytes, so that the
    /// caller reads it first.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn put_revision(&self, folder: &Path, n: u64, bytes: Bytes) -> Result<bool> {
        match self.put_new(&layout::revision(folder, n), bytes).await {
            Ok(_) => Ok(true),
            Err(error) if error.class() == Class::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }
}
