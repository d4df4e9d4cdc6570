//! One generation of an adapter that was checked and may answer. Where its values are, on the
//! device, in main memory or only in the store, changes; this does not.

use std::time::SystemTime;

use togi_common::Generation;

/// A checked adapter, immutable.
#[derive(Debug)]
pub struct ServedAdapter {
    generation: Generation,
    trained_over: String,
    device_bytes: u64,
    loaded: SystemTime,
}

impl ServedAdapter {
    pub(crate) fn new(generation: Generation, trained_over: String, device_bytes: u64) -> Self {
        Self {
            generation,
            trained_over,
            device_bytes,
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

    /// Returns the bytes that it takes on the device.
    pub fn device_bytes(&self) -> u64 {
        self.device_bytes
    }

    /// Returns when it was checked.
    pub fn loaded(&self) -> SystemTime {
        self.loaded
    }
}
