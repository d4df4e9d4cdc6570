//! The progress of a preparation: the working threads count it, and the worker publishes it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Counts of one preparation.
#[derive(Debug, Default)]
pub struct Progress {
    records: AtomicU64,
    bytes: AtomicU64,
    bytes_total: AtomicU64,
    reading: String,
    read_as: OnceLock<String>,
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
    /// A sentence about the files that are read and those that are not, and about the form of their
    /// records once it is known.
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

    /// Says how the files were read, once; an empty text says nothing.
    pub(crate) fn set_read_as(&self, sentence: &str) {
        if !sentence.is_empty() {
            self.read_as.get_or_init(|| sentence.to_owned());
        }
    }

    /// Returns the counts.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            records: self.records.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            bytes_total: self.bytes_total.load(Ordering::Relaxed),
            reading: match self.read_as.get() {
                Some(form) if self.reading.is_empty() => form.clone(),
                Some(form) => format!("{}; {form}", self.reading),
                None => self.reading.clone(),
            },
        }
    }
}
