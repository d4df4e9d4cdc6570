//! The progress of a preparation: the working threads count it, and the worker publishes it.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Counts of one preparation.
#[derive(Debug, Default)]
pub struct Progress {
    records: AtomicU64,
    bytes: AtomicU64,
    bytes_total: AtomicU64,
    reading: String,
}

/// The counts at one moment, as a worker publishes them and a watcher reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Records read.
    pub records: u64,
    /// Bytes of the source read, before unpacking.
    pub bytes: u64,
    /// Bytes of the source; 0 if unknown.
    pub bytes_total: u64,
    /// A sentence about the files that are read and those that are not; empty for one file.
    #[serde(default)]
    pub reading: String,
}

impl Progress {
    /// Starts at zero bytes of `bytes_total`, with a sentence about the files that are read.
    pub fn new(bytes_total: u64, reading: &str) -> Self {
        Self {
            bytes_total: bytes_total.into(),
            reading: reading.to_owned(),
            ..Self::default()
        }
    }

    /// Counts records.
    pub fn add_records(&self, records: u64) {
        self.records.fetch_add(records, Ordering::Relaxed);
    }

    /// Counts bytes of the source.
    pub fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns the counts.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            records: self.records.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            bytes_total: self.bytes_total.load(Ordering::Relaxed),
            reading: self.reading.clone(),
        }
    }
}
