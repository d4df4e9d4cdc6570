//! One generation of an adapter, checked and in memory. A request holds it by `Arc` until its
//! answer has ended; the last holder frees its memory.

use std::time::SystemTime;

use togi_common::{Digest, Generation};
use togi_model::Adapter;

/// An adapter in memory, immutable.
pub struct ServedAdapter {
    generation: Generation,
    trained_over: String,
    adapter: Adapter,
    loaded: SystemTime,
}

impl ServedAdapter {
    pub(crate) fn new(generation: Generation, trained_over: String, adapter: Adapter) -> Self {
        Self {
            generation,
            trained_over,
            adapter: adapter.identified(*Digest::from(generation).as_bytes()),
            loaded: SystemTime::now(),
        }
    }

    /// Returns its generation.
    pub fn generation(&self) -> Generation {
        self.generation
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
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}
