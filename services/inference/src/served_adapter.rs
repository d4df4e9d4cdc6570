//! One generation of an adapter, checked and in memory. A request holds it by `Arc` until its
//! answer has ended; the last holder frees its memory.

use std::time::SystemTime;

use togi_model::Adapter;

/// An adapter in memory, immutable.
pub struct ServedAdapter {
    digest: String,
    trained_over: String,
    adapter: Adapter,
    loaded: SystemTime,
}

impl ServedAdapter {
    pub(crate) fn new(digest: String, trained_over: String, adapter: Adapter) -> Self {
        Self {
            digest,
            trained_over,
            adapter,
            loaded: SystemTime::now(),
        }
    }

    /// Returns its generation: 64 lower-case hex digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the name of the base's precision in training.
    pub fn trained_over(&self) -> &str {
        &self.trained_over
    }

    /// Returns when it was loaded.
    pub fn loaded(&self) -> SystemTime {
        self.loaded
    }

    pub(crate) fn adapter(&self) -> &Adapter {
        &self.adapter
    }
}

impl std::fmt::Debug for ServedAdapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedAdapter")
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}
