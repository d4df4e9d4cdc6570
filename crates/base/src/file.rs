//! One file of the store that a manifest describes.

use bytes::Bytes;
use object_store::path::Path;
use togi_common::Digest;
use togi_runtime::registry::adapter_manifest::AdapterFile;
use togi_runtime::{Class, Store};
use tokio::task::spawn_blocking;

use crate::error::{Error, Result};

/// Reads a file and checks its size and digest. `entry` is the manifest's; messages have `name`.
///
/// # Errors
/// [`Error::Manifest`] without an entry, or if it has more than `max_bytes`; [`Error::Damaged`] if
/// the file is missing or differs; the store's.
pub async fn read(
    store: &Store,
    path: &Path,
    name: &str,
    entry: Option<&AdapterFile>,
    max_bytes: u64,
) -> Result<Bytes> {
    let entry =
        entry.ok_or_else(|| Error::Manifest(format!("its manifest does not name {name}")))?;
    let size = entry.bytes;
    if size > max_bytes {
        let reason = format!("{name} has {size} bytes, more than {max_bytes}");
        return Err(Error::Manifest(reason));
    }
    let damaged = |reason: &str| Error::Damaged(format!("{name} {reason}"));
    let read = store.get_bounded(path, size).await;
    let bytes = read.map_err(|error| match error.class() {
        Class::NotFound => damaged("is missing"),
        Class::ResourceExhausted => damaged("is larger than its manifest says"),
        _ => error.into(),
    })?;
    if bytes.len() as u64 != size {
        let found = bytes.len();
        return Err(damaged(&format!(
            "has {found} bytes, its manifest says {size}"
        )));
    }
    let hashed = bytes.clone();
    let digest = spawn_blocking(move || Digest::of(&hashed).to_string())
        .await
        .map_err(|error| togi_runtime::Error::internal(format!("hashing {name}: {error}")))?;
    if digest != entry.sha256 {
        let expected = &entry.sha256;
        return Err(damaged(&format!(
            "has sha-256 {digest}, its manifest says {expected}"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use togi_testing::folder_store;

    use super::*;

    #[tokio::test]
    async fn a_file_is_read_only_as_its_manifest_describes_it() {
        let (_folder, store) = folder_store().await;
        let path = Path::from("folder/file");
        let good = AdapterFile {
            bytes: 5,
            sha256: Digest::of(b"bytes").to_string(),
        };
        let sized = |bytes| AdapterFile {
            bytes,
            ..good.clone()
        };
        let read =
            async |entry: Option<&AdapterFile>| match read(&store, &path, "file", entry, 6).await {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(error) => error.to_string(),
            };
        assert_eq!(read(None).await, "its manifest does not name file");
        assert_eq!(read(Some(&good)).await, "file is missing");
        store.put(&path, Bytes::from("bytes")).await.unwrap();
        assert_eq!(read(Some(&good)).await, "bytes");
        let cases = [
            (7, "file has 7 bytes, more than 6"),
            (4, "file is larger than its manifest says"),
            (6, "file has 5 bytes, its manifest says 6"),
        ];
        for (bytes, says) in cases {
            let entry = sized(bytes);
            assert_eq!(read(Some(&entry)).await, says);
        }
        store.put(&path, Bytes::from("Bytes")).await.unwrap();
        let says = read(Some(&good)).await;
        assert!(says.starts_with("file has sha-256 "), "{says}");
    }
}
