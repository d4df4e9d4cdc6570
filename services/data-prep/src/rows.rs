//! Reads the rows of a data set in any order with bounded memory. Rows are looked up a window at a
//! time, shard by shard: one decoded shard, the window and the shared cache are in memory.

mod cache;

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_select::concat::concat_batches;
use arrow_select::interleave::interleave_record_batch;
use arrow_select::take::take_record_batch;
use bytes::Bytes;
use togi_common::Digest;
use togi_runtime::{Store, layout};
use togi_tokens::manifest::{DatasetManifest, Part, Split};
use togi_tokens::order::Permutation;
use togi_tokens::shard::{Caps, Reader, lengths, schema};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tracing::instrument;

use self::cache::Cache;
use crate::config::FlightConfig;
use crate::error::{Error, Result};
use crate::metrics::Metrics;

/// Most bytes of ids and labels in a message; gRPC readers refuse 4 MiB by default.
const MAX_BATCH_BYTES: u64 = 1 << 20;
/// Most bytes of ids and labels in a window.
const MAX_WINDOW_BYTES: u64 = 64 << 20;

/// Decoded shards, shared by all readers.
pub(crate) struct Shards {
    store: Store,
    cache: Cache,
    /// Bounds the shards that are decoded at the same time.
    decoding: Semaphore,
    metrics: Metrics,
}

/// The rows that a reader wants, and their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) split: Split,
    /// Seed and epoch of the permutation; the stored order if not set.
    pub(crate) shuffle: Option<(u64, u64)>,
    /// Rows to skip in that order.
    pub(crate) offset: u64,
}

/// The position of a reader in a data set.
pub(crate) struct Rows {
    shards: Arc<Shards>,
    manifest: Arc<DatasetManifest>,
    /// The split's parts by their index in the manifest, each with the number of its first row.
    parts: Vec<(usize, u64)>,
    order: Option<Permutation>,
    total: u64,
    next: u64,
    window: usize,
    batch: usize,
}

impl Rows {
    /// Starts at the selection's offset, which must be at most the number of the split's rows.
    pub(crate) fn new(
        shards: Arc<Shards>,
        manifest: Arc<DatasetManifest>,
        selection: &Selection,
        config: &FlightConfig,
    ) -> Self {
        let total = manifest.rows(selection.split);
        let row_bytes = 8 * u64::from(manifest.settings.max_length);
        let within = |rows: usize, bytes: u64| {
            let most = usize::try_from(bytes / row_bytes).unwrap_or(usize::MAX);
            rows.min(most).max(1)
        };
        let batch = within(config.batch_rows, MAX_BATCH_BYTES);
        Self {
            parts: parts(&manifest, selection.split),
            order: selection
                .shuffle
                .map(|(seed, epoch)| Permutation::new(total, seed, epoch)),
            total,
            next: selection.offset,
            window: within(config.window_rows, MAX_WINDOW_BYTES).max(batch),
            batch,
            shards,
            manifest,
        }
    }

    /// Returns the next rows as batches in their order; no batch at the end.
    pub(crate) async fn next_window(&mut self) -> Result<Vec<RecordBatch>> {
        let end = self.total.min(self.next + self.window as u64);
        let rows: Vec<u64> = (self.next..end)
            .map(|position| self.row(position))
            .collect();
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        // For each shard its rows in the window; for each row of the window its shard and its index
        // among the shard's rows.
        let mut wanted: Vec<Vec<u64>> = vec![Vec::new(); self.parts.len()];
        let mut places = Vec::with_capacity(rows.len());
        for row in rows {
            let part = self.parts.partition_point(|&(_, first)| first <= row) - 1;
            places.push((part, wanted[part].len()));
            wanted[part].push(row - self.parts[part].1);
        }
        let mut taken = Vec::new();
        let mut place_of = vec![0; self.parts.len()];
        for (part, rows) in wanted
            .into_iter()
            .enumerate()
            .filter(|(_, rows)| !rows.is_empty())
        {
            place_of[part] = taken.len();
            let shard = self.shards.get(&self.manifest, self.parts[part].0).await?;
            taken.push(on_thread(move || take(&shard, rows)).await?);
        }
        let batch = self.batch;
        let batches = on_thread(move || {
            let shards: Vec<&RecordBatch> = taken.iter().collect();
            let mut batches = Vec::new();
            for places in places.chunks(batch) {
                let indices: Vec<(usize, usize)> = places
                    .iter()
                    .map(|&(part, row)| (place_of[part], row))
                    .collect();
                let gathered = interleave_record_batch(&shards, &indices);
                batches.push(gathered.map_err(togi_tokens::Error::from)?);
            }
            Ok(batches)
        })
        .await?;
        self.shards.metrics.flight_rows(end - self.next);
        self.next = end;
        Ok(batches)
    }

    fn row(&self, position: u64) -> u64 {
        self.order
            .as_ref()
            .and_then(|order| order.at(position))
            .unwrap_or(position)
    }
}

/// Returns the index in the manifest of each part of a split that has rows, with the number of its
/// first row.
fn parts(manifest: &DatasetManifest, split: Split) -> Vec<(usize, u64)> {
    let mut first = 0;
    let mut parts = Vec::new();
    for (index, part) in manifest.parts.iter().enumerate() {
        if part.split == split && part.rows > 0 {
            parts.push((index, first));
            first += part.rows;
        }
    }
    parts
}

fn take(shard: &RecordBatch, rows: Vec<u64>) -> Result<RecordBatch> {
    let rows = arrow_array::UInt64Array::from(rows);
    Ok(take_record_batch(shard, &rows).map_err(togi_tokens::Error::from)?)
}

/// An error with its causes, in one line.
fn reason(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(work)
        .await
        .map_err(|_| Error::Panicked { thread: "flight" })?
}

impl Shards {
    /// Reads from a store, and caches up to `cache_bytes`.
    pub(crate) fn new(store: &Store, cache_bytes: usize, metrics: &Metrics) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            store: store.clone(),
            cache: Cache::new(cache_bytes),
            decoding: Semaphore::new(cores),
            metrics: metrics.clone(),
        }
    }

    /// Returns a decoded part from the cache, or from the store after a check of its digest.
    async fn get(&self, manifest: &Arc<DatasetManifest>, index: usize) -> Result<RecordBatch> {
        let key = (manifest.dataset, index);
        if let Some(shard) = self.cache.get(&key) {
            self.metrics.shard("cache");
            return Ok(shard);
        }
        let _permit = self.decoding.acquire().await.map_err(|_| Error::Stopped)?;
        // Another reader may have decoded it during the wait.
        if let Some(shard) = self.cache.get(&key) {
            self.metrics.shard("cache");
            return Ok(shard);
        }
        let shard = self.load(manifest.clone(), index).await?;
        self.metrics.shard("store");
        self.cache.put(key, shard.clone());
        Ok(shard)
    }

    #[instrument(level = "debug", skip_all, fields(dataset = %manifest.dataset, index))]
    async fn load(&self, manifest: Arc<DatasetManifest>, index: usize) -> Result<RecordBatch> {
        let part = &manifest.parts[index];
        let path = layout::dataset_file(manifest.dataset, &part.path);
        let bytes = self.store.get_bounded(&path, part.size_bytes).await?;
        let path = path.to_string();
        on_thread(move || {
            let part = &manifest.parts[index];
            if Digest::of(&bytes).to_string() != part.sha256 {
                return Err(Error::Damaged { path });
            }
            // The bytes are those of the manifest, so that another try finds the same.
            decoded(&manifest, part, bytes).map_err(|error| Error::Unreadable {
                path,
                reason: reason(&error),
            })
        })
        .await
    }
}

/// Decodes a shard, and checks what its manifest says about it.
fn decoded(
    manifest: &DatasetManifest,
    part: &Part,
    bytes: Bytes,
) -> togi_tokens::Result<RecordBatch> {
    let reader = Reader::open(bytes, &Caps::default())?;
    manifest.check_shard(part, reader.metadata(), reader.dataset())?;
    let groups = reader.groups().collect::<togi_tokens::Result<Vec<_>>>()?;
    let rows = concat_batches(&schema(), &groups)?;
    let tokens = lengths(&rows)?.into_iter().map(u64::from).sum();
    part.check_counts(rows.num_rows() as u64, tokens)?;
    Ok(rows)
}
