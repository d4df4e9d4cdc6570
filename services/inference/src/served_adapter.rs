//! One generation of an adapter, checked and in memory. A request holds it by `Arc` from its first token to its last; when the
//! last holder lets go, its memory is freed.

use std::time::SystemTime;

use togi_model::Adapter;

/// A loaded adapter. Immutable.
pub struct ServedAdapter {
    digest: String,
    trained_over: String,
    adapter: Adapter,
    loaded: SystemTime,
}

impl ServedAdapter {
    pub(crate) fn new(digest: String, trained_over: String, adapter: Adapter) -> ServedAdapter {
        ServedAdapter {
            digest,
            trained_over,
            adapter,
            loaded: SystemTime::now(),
        }
    }

    /// Its name: 64 lower-case hex digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// How the base was held in training: a precision's name.
    pub fn trained_over(&self) -> &str {
        &self.trained_over
    }

    /// When it was loaded.
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
