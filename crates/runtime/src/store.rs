//! The object store: create-if-absent with read-back, revisions, listing. Its manifests are the
//! truth of the whole system, so an unclear outcome is settled by reading and never by deleting.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, WriteMultipart,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use togi_common::{canonical, nearest};
use tokio::io::AsyncReadExt as _;

use crate::config::StoreConfig;
use crate::error::{Class, Error, Result};
use crate::layout;
use crate::life::backoff::Backoff;

mod base_files;
pub mod folder;
pub mod hub;
mod local;
mod open;
mod revisions;
pub use open::{connect, connect_object};

/// Largest object that is read into memory whole.
pub const MAX_WHOLE_BYTES: u64 = 1 << 30;
const CHUNK_BYTES: usize = 8 << 20;
const PARALLEL_CHUNKS: usize = 4;
const ATTEMPTS: u32 = 6;

/// The outcome of [`Store::put_new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object was written.
    Created,
    /// The object existed with the same bytes.
    Same,
}

/// The object store. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
}

impl Store {
    /// Opens the store and proves that it keeps conditional writes. It waits without limit while
    /// the store cannot be reached, and logs that; drop the future to give up.
    ///
    /// # Errors
    /// A URL or option that is wrong, refused credentials, or a store that lets two writers create
    /// the same object.
    pub async fn open(config: &StoreConfig) -> Result<Self> {
        Self::open_noting(config, |_| {}).await
    }

    /// Like [`Store::open`]; `waits` gets each error that is waited out.
    pub(crate) async fn open_noting(config: &StoreConfig, waits: impl Fn(&Error)) -> Result<Self> {
        let store = Self {
            inner: connect(&config.url, &config.all_options()?)?,
        };
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
        loop {
            match store.probe().await {
                Ok(()) => return Ok(store),
                Err(error) if error.class() == Class::Unavailable => {
                    let url = crate::error::scrub(&config.url);
                    tracing::warn!(url, error = error.chain(), "waiting for the object store");
                    waits(&error);
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(backoff.step()).await;
        }
    }

    /// Returns the `object_store` behind this one, rooted at the configured URL.
    #[must_use]
    pub fn inner(&self) -> Arc<dyn ObjectStore> {
        self.inner.clone()
    }

    /// Some S3 servers ignore `If-None-Match` and let every writer win. They are refused.
    async fn probe(&self) -> Result<()> {
        let key = layout::probe(&random_hex()?);
        match self.create(&key, Bytes::from_static(b"1")).await {
            // The key is random, so the object is our own write, which was repeated after an error.
            Ok(()) | Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(conditional(error)),
        }
        let second = self.create(&key, Bytes::from_static(b"2")).await;
        if let Err(error) = self.delete(&key).await {
            tracing::debug!(error = error.chain(), "probe object stays behind");
        }
        match second {
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(()),
            Ok(()) => Err(Error::precondition(
                "the object store ignores conditional writes (If-None-Match): two writers could create the same object; \
                 use one that keeps them",
            )),
            Err(error) => Err(conditional(error)),
        }
    }

    async fn create(
        &self,
        key: &Path,
        bytes: Bytes,
    ) -> std::result::Result<(), object_store::Error> {
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        self.inner
            .put_opts(key, bytes.into(), options)
            .await
            .map(|_| ())
    }

    /// Creates an object. Equal bytes under the key are a success. A conflict of the store with
    /// itself, a timeout or an error after the write is settled by reading back.
    ///
    /// # Errors
    /// `AlreadyExists` if the object exists with other bytes; `Unavailable` if the outcome stays
    /// unclear.
    pub async fn put_new(&self, key: &Path, bytes: impl Into<Bytes>) -> Result<Put> {
        let bytes = bytes.into();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut unclear = None;
        for _ in 0..ATTEMPTS {
            match self.create(key, bytes.clone()).await.map_err(about(key)) {
                Ok(()) => return Ok(Put::Created),
                Err(error) if settled_by_reading(error.class()) => unclear = Some(error),
                Err(error) => return Err(error),
            }
            match self.get(key).await {
                // Equal bytes may be our own earlier write; the caller need not know.
                Ok(found) if found == bytes => return Ok(Put::Same),
                Ok(_) => {
                    let message = format!("object {key} exists already with other bytes");
                    return Err(Error::new(Class::AlreadyExists, message));
                }
                Err(error) if error.class() == Class::NotFound => {}
                Err(error) => unclear = Some(error),
            }
            tokio::time::sleep(backoff.step()).await;
        }
        let error = Error::unavailable(format!("object {key} could not be written"));
        Err(match unclear {
            Some(cause) => error.with_source(cause),
            None => error,
        })
    }

    /// Writes an object over any other, for logs and other objects that no manifest names.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn put(&self, key: &Path, bytes: impl Into<Bytes>) -> Result<()> {
        self.inner
            .put(key, bytes.into().into())
            .await
            .map_err(about(key))?;
        Ok(())
    }

    /// Writes a stream of any length under a content-addressed key, in parts; returns the bytes
    /// written. On an error of the stream or the store nothing is visible under the key.
    ///
    /// # Errors
    /// The stream's first error, or those of the store.
    pub async fn put_stream(
        &self,
        key: &Path,
        stream: impl Stream<Item = Result<Bytes>> + Send,
    ) -> Result<u64> {
        let upload = self.inner.put_multipart(key).await.map_err(about(key))?;
        let mut write = WriteMultipart::new_with_chunk_size(upload, CHUNK_BYTES);
        let mut total = 0u64;
        let mut stream = std::pin::pin!(stream);
        while let Some(piece) = stream.next().await {
            let written = match piece {
                Ok(bytes) => {
                    total += bytes.len() as u64;
                    write.put(bytes);
                    write
                        .wait_for_capacity(PARALLEL_CHUNKS)
                        .await
                        .map_err(about(key))
                }
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                if let Err(error) = write.abort().await {
                    tracing::debug!(%error, "upload's parts stay behind");
                }
                return Err(error);
            }
        }
        write.finish().await.map_err(about(key))?;
        Ok(total)
    }

    /// Copies a local file to a content-addressed key; returns its size. An object of that size
    /// under the key counts as the same.
    ///
    /// # Errors
    /// Those of the file and the store.
    pub async fn put_file(&self, key: &Path, local: &std::path::Path) -> Result<u64> {
        let mut file = tokio::fs::File::open(local).await?;
        let size = file.metadata().await?.len();
        match self.head(key).await {
            Ok(meta) if meta.size == size => return Ok(size),
            Ok(_) => {}
            Err(error) if error.class() == Class::NotFound => {}
            Err(error) => return Err(error),
        }
        if size <= CHUNK_BYTES as u64 {
            let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
            file.read_to_end(&mut bytes).await?;
            self.put(key, bytes).await?;
            return Ok(size);
        }
        let pieces =
            tokio_util::io::ReaderStream::with_capacity(file, 1 << 20).map_err(Error::from);
        self.put_stream(key, pieces).await
    }

    /// Returns an object's bytes.
    ///
    /// # Errors
    /// `NotFound`; `ResourceExhausted` above [`MAX_WHOLE_BYTES`]; those of the store.
    pub async fn get(&self, key: &Path) -> Result<Bytes> {
        self.get_bounded(key, MAX_WHOLE_BYTES).await
    }

    /// Returns an object's bytes if it has at most `max_bytes`.
    ///
    /// # Errors
    /// `NotFound`; `ResourceExhausted` if it is larger; those of the store.
    pub async fn get_bounded(&self, key: &Path, max_bytes: u64) -> Result<Bytes> {
        let found = self.inner.get(key).await.map_err(about(key))?;
        let size = found.meta.size;
        if size > max_bytes {
            let message = format!("object {key} has {size} bytes; at most {max_bytes} are read");
            return Err(Error::new(Class::ResourceExhausted, message));
        }
        found.bytes().await.map_err(about(key))
    }

    /// Returns an object's bytes as a stream.
    ///
    /// # Errors
    /// `NotFound`, and those of the store, at first or in the stream.
    pub async fn get_stream(&self, key: &Path) -> Result<BoxStream<'static, Result<Bytes>>> {
        let found = self.inner.get(key).await.map_err(about(key))?;
        Ok(found.into_stream().map_err(about(key)).boxed())
    }

    /// Returns some of an object's bytes.
    ///
    /// # Errors
    /// `NotFound`, and those of the store.
    pub async fn get_range(&self, key: &Path, range: Range<u64>) -> Result<Bytes> {
        self.inner.get_range(key, range).await.map_err(about(key))
    }

    /// Returns an object's size and time.
    ///
    /// # Errors
    /// `NotFound`, and those of the store.
    pub async fn head(&self, key: &Path) -> Result<ObjectMeta> {
        self.inner.head(key).await.map_err(about(key))
    }

    /// Returns whether the object exists.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn exists(&self, key: &Path) -> Result<bool> {
        match self.head(key).await {
            Ok(_) => Ok(true),
            Err(error) if error.class() == Class::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns all objects below a folder, at any depth, ordered by key.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list(&self, folder: &Path) -> Result<Vec<ObjectMeta>> {
        let mut found: Vec<ObjectMeta> = self.inner.list(Some(folder)).try_collect().await?;
        found.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(found)
    }

    /// Returns the names of the folders directly in a folder, ordered.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list_dirs(&self, folder: &Path) -> Result<Vec<String>> {
        let found = self.inner.list_with_delimiter(Some(folder)).await?;
        let names = found.common_prefixes.iter().filter_map(Path::filename);
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// Returns the end of a sentence that names the folder in `folder` that is nearest to a name;
    /// empty if none is near, or the store does not answer.
    pub async fn nearest(&self, folder: &Path, name: &str) -> String {
        let known = self.list_dirs(folder).await.unwrap_or_default();
        nearest::suggestion(name, known.iter().map(String::as_str))
    }

    /// Deletes an object; a missing one counts as deleted.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn delete(&self, key: &Path) -> Result<()> {
        match self.inner.delete(key).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(about(key)(error)),
        }
    }

    /// Returns a JSON object.
    ///
    /// # Errors
    /// `NotFound`; `DataLoss` if it cannot be parsed; those of the store.
    pub async fn get_json<T: DeserializeOwned>(&self, key: &Path) -> Result<T> {
        let bytes = self.get_bounded(key, 64 << 20).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::data_loss(format!("object {key} is not what it should be")).with_source(error)
        })
    }

    /// Creates a JSON object, in the bytes of [`canonical::json`].
    ///
    /// # Errors
    /// As [`Store::put_new`].
    pub async fn put_new_json<T: Serialize + Sync>(&self, key: &Path, value: &T) -> Result<Put> {
        self.put_new(key, canonical::json(value)?).await
    }
}

/// Returns the error of the probe's conditional write.
fn conditional(error: object_store::Error) -> Error {
    let error = Error::from(error);
    if error.class() != Class::Unimplemented {
        return error;
    }
    Error::precondition(
        "the object store does not implement conditional writes (If-None-Match), without which \
         two writers could create the same object: use one that implements them, and leave \
         store.options.conditional_put (AWS_CONDITIONAL_PUT) at its default",
    )
    .with_source(error)
}

/// Names the object in an error of the store.
fn about(key: &Path) -> impl Fn(object_store::Error) -> Error + Send + use<> {
    let key = key.to_string();
    move |error| Error::of_object(&key, error)
}

/// Whether reading back may settle the outcome.
fn settled_by_reading(class: Class) -> bool {
    matches!(
        class,
        Class::AlreadyExists
            | Class::Aborted
            | Class::Unavailable
            | Class::DeadlineExceeded
            | Class::NotFound
    )
}

/// Returns 20 random hex digits.
///
/// # Errors
/// When the system has no randomness.
pub(crate) fn random_hex() -> Result<String> {
    let mut bytes = [0u8; 10];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| Error::internal("the system gives no random bytes"))?;
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests;
