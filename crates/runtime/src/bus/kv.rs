//! A key-value bucket with compare-and-set. A write whose answer was lost is settled by reading
//! back; watches survive reconnects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, UpdateErrorKind, Watch};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use tokio::sync::OnceCell;

use crate::bus::presence::Link;
use crate::error::{Class, Error, Result};
use crate::life::backoff::Backoff;
use crate::life::stop::Stopper;

const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// One key's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value; `None` once it is deleted.
    pub value: Option<Bytes>,
    /// The write's revision: rising over the whole bucket.
    pub revision: u64,
}

/// A bucket. Clones share it.
#[derive(Clone, Debug)]
pub struct Kv(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    link: Link,
    bucket: String,
    stopper: Stopper,
    store: OnceCell<kv::Store>,
}

impl Kv {
    pub(crate) fn new(link: &Link, bucket: &str, stopper: &Stopper) -> Self {
        Self(Arc::new(Inner {
            link: link.clone(),
            bucket: bucket.to_owned(),
            stopper: stopper.clone(),
            store: OnceCell::new(),
        }))
    }

    async fn store(&self) -> Result<&kv::Store> {
        self.0.link.connected().await?;
        let open = || async { self.0.link.js.get_key_value(&self.0.bucket).await };
        self.0
            .store
            .get_or_try_init(open)
            .await
            .map_err(|error| self.gone(error))
    }

    fn gone(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::unavailable(format!("bucket {} does not answer", self.0.bucket)).with_source(error)
    }

    /// Returns a key's entry; `None` if it was never written or was deleted.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>> {
        let found = self
            .store()
            .await?
            .entry(key)
            .await
            .map_err(|error| self.gone(error))?;
        Ok(found
            .filter(|entry| entry.operation == Operation::Put)
            .map(Entry::from))
    }

    /// Creates a key that is not there; returns its revision.
    ///
    /// # Errors
    /// `AlreadyExists`; `Unavailable`.
    pub async fn create(&self, key: &str, value: impl Into<Bytes>) -> Result<u64> {
        let value = value.into();
        let error = match self.store().await?.create(key, value.clone()).await {
            Ok(revision) => return Ok(revision),
            Err(error) => error,
        };
        if error.kind() == CreateErrorKind::AlreadyExists {
            let message = format!("{key} exists already in {}", self.0.bucket);
            return Err(Error::new(Class::AlreadyExists, message));
        }
        match self.get(key).await {
            Ok(Some(entry)) if entry.value.as_ref() == Some(&value) => Ok(entry.revision),
            _ => Err(self.gone(error)),
        }
    }

    /// Replaces a key's value if its revision is still this one; returns the new revision.
    ///
    /// # Errors
    /// `Aborted` if another writer was faster; `Unavailable`.
    pub async fn update(&self, key: &str, value: impl Into<Bytes>, revision: u64) -> Result<u64> {
        let value = value.into();
        let error = match self
            .store()
            .await?
            .update(key, value.clone(), revision)
            .await
        {
            Ok(revision) => return Ok(revision),
            Err(error) => error,
        };
        // The acknowledgement may be lost after the write. Equal bytes at a later revision are
        // ours, because only we write them.
        match self.get(key).await {
            Ok(Some(entry))
                if entry.revision > revision && entry.value.as_ref() == Some(&value) =>
            {
                Ok(entry.revision)
            }
            _ if error.kind() == UpdateErrorKind::WrongLastRevision => {
                let message = format!("{key} was changed meanwhile in {}", self.0.bucket);
                Err(Error::new(Class::Aborted, message))
            }
            _ => Err(self.gone(error)),
        }
    }

    /// Writes a key, over any value; returns its revision.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn put(&self, key: &str, value: impl Into<Bytes>) -> Result<u64> {
        self.store()
            .await?
            .put(key, value.into())
            .await
            .map_err(|error| self.gone(error))
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.store()
            .await?
            .delete(key)
            .await
            .map_err(|error| self.gone(error))
    }

    /// Returns the keys, ordered.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn keys(&self) -> Result<Vec<String>> {
        Ok(self
            .entries()
            .await?
            .into_iter()
            .map(|entry| entry.key)
            .collect())
    }

    /// Returns all entries, ordered by key, in a few requests.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn entries(&self) -> Result<Vec<Entry>> {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::LastPerSubject,
            // The server requires a filter with this policy.
            filter_subject: format!("$KV.{}.>", self.0.bucket),
            ack_policy: AckPolicy::None,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: Duration::from_secs(30),
            ..pull::Config::default()
        };
        let stream = format!("KV_{}", self.0.bucket);
        self.0.link.connected().await?;
        let consumer = self
            .0
            .link
            .js
            .create_consumer_on_stream(config, stream.as_str())
            .await;
        let consumer = consumer.map_err(|error| self.gone(error))?;
        let mut left = consumer.cached_info().num_pending;
        let mut found = BTreeMap::new();
        while left > 0 {
            let batch = consumer
                .fetch()
                .max_messages(512)
                .expires(Duration::from_secs(2));
            let mut batch = batch.messages().await.map_err(|error| self.gone(error))?;
            let mut received = 0;
            while let Some(message) = batch.next().await {
                let message = message.map_err(|error| Error::unavailable(error.to_string()))?;
                let info = message
                    .info()
                    .map_err(|error| Error::unavailable(error.to_string()))?;
                received += 1;
                left = info.pending;
                let revision = info.stream_sequence;
                let prefix = format!("$KV.{}.", self.0.bucket);
                let Some(key) = message.subject.strip_prefix(&prefix).map(str::to_owned) else {
                    continue;
                };
                let deleted = message
                    .headers
                    .as_ref()
                    .is_some_and(|h| h.get("KV-Operation").is_some());
                let marked = message
                    .headers
                    .as_ref()
                    .is_some_and(|h| h.get("Nats-Marker-Reason").is_some());
                if deleted || marked {
                    found.remove(&key);
                    continue;
                }
                let value = Some(message.payload.clone());
                found.insert(
                    key.clone(),
                    Entry {
                        key,
                        value,
                        revision,
                    },
                );
            }
            if received == 0 {
                // The pending messages may have expired meanwhile.
                break;
            }
        }
        // An unused consumer expires automatically, but frequent listing would collect many.
        let name = consumer.cached_info().name.clone();
        let _ = self
            .0
            .link
            .js
            .delete_consumer_from_stream(name.as_str(), stream.as_str())
            .await;
        Ok(found.into_values().collect())
    }

    /// Returns a key's present entry and then every change; `>` is every key. After an error the
    /// watch begins again with the present entry. The stream ends only if the bus is stopped while
    /// the server is away.
    pub fn watch(&self, key: &str) -> impl Stream<Item = Entry> + Send + Unpin + use<> {
        let state = Watching {
            kv: self.clone(),
            key: key.to_owned(),
            watch: None,
            backoff: BACKOFF,
        };
        Box::pin(stream::unfold(state, |mut state| async move {
            let entry = state.next().await?;
            Some((entry, state))
        }))
    }
}

struct Watching {
    kv: Kv,
    key: String,
    watch: Option<Watch>,
    backoff: Backoff,
}

impl Watching {
    async fn next(&mut self) -> Option<Entry> {
        loop {
            let failed = match &mut self.watch {
                Some(watch) => match watch.next().await {
                    Some(Ok(entry)) => {
                        self.backoff.reset();
                        return Some(Entry::from(entry));
                    }
                    Some(Err(error)) => error.to_string(),
                    None => "the watch ended".to_owned(),
                },
                None => match self.open().await {
                    Ok(watch) => {
                        self.watch = Some(watch);
                        continue;
                    }
                    Err(error) => error.chain(),
                },
            };
            self.watch = None;
            tracing::debug!(
                bucket = self.kv.0.bucket,
                key = self.key,
                error = failed,
                "watching again"
            );
            if !self.backoff.wait(&self.kv.0.stopper).await {
                return None;
            }
        }
    }

    /// By `&mut`, because a watch is not `Sync`, so a shared borrow of it would not be `Send`.
    async fn open(&mut self) -> Result<Watch> {
        let store = self.kv.store().await?;
        store
            .watch_with_history(&self.key)
            .await
            .map_err(|error| self.kv.gone(error))
    }
}

impl From<kv::Entry> for Entry {
    fn from(entry: kv::Entry) -> Self {
        let value = (entry.operation == Operation::Put).then_some(entry.value);
        Self {
            key: entry.key,
            value,
            revision: entry.revision,
        }
    }
}
