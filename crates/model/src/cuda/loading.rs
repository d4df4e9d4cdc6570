//! The state of loading a base. [`Staging`] copies its matrices from their files; while one matrix
//! is quantized, the next ones are copied.

use std::collections::VecDeque;
use std::sync::Arc;
#[cfg(feature = "bench")]
use std::time::Instant;

use super::array::Buffer;
use super::staging::{Staging, Transfer};
use crate::mapped::Bytes;
use crate::precision::Precision;

/// Bytes that are copied ahead of the requested matrix: a few milliseconds of the bus.
const AHEAD: usize = 128 << 20;

/// A base that is being loaded.
pub(super) struct Loading {
    // The first field is dropped first, so that no copy is running when its target is freed.
    pub(super) staging: Staging,
    transfers: VecDeque<Pending>,
    /// Matrices that are not begun, in the order in which they will be requested.
    waiting: VecDeque<(String, Bytes)>,
    /// A number for each checked tensor: its forbidden values.
    pub(super) flaws: Buffer<u32>,
    pub(super) checked: Vec<(String, Precision)>,
    /// The values of the codes of nested scales.
    pub(super) map: Arc<Buffer<f32>>,
    #[cfg(feature = "bench")]
    pub(super) began: Instant,
}

/// A matrix that is being copied.
pub(super) struct Pending {
    pub(super) name: String,
    pub(super) buffer: Buffer<u8>,
    pub(super) transfer: Arc<Transfer>,
}

impl Loading {
    pub(super) fn new(
        staging: Staging,
        waiting: VecDeque<(String, Bytes)>,
        flaws: Buffer<u32>,
        map: Buffer<f32>,
    ) -> Self {
        Self {
            staging,
            transfers: VecDeque::new(),
            waiting,
            flaws,
            checked: Vec::new(),
            map: Arc::new(map),
            #[cfg(feature = "bench")]
            began: Instant::now(),
        }
    }

    /// Takes the transfer of a matrix. A matrix that was not begun leaves the queue instead.
    pub(super) fn take(&mut self, name: &str) -> Option<Pending> {
        let index = self.transfers.iter().position(|other| other.name == name);
        if index.is_none() {
            self.waiting.retain(|(other, _)| other != name);
        }
        self.transfers.remove(index?)
    }

    /// The next matrix to begin, unless enough are copied ahead.
    pub(super) fn next_waiting(&mut self) -> Option<(String, Bytes)> {
        let transfers = self.transfers.iter();
        let ahead: usize = transfers.map(|other| other.buffer.len()).sum();
        if ahead < AHEAD {
            self.waiting.pop_front()
        } else {
            None
        }
    }

    pub(super) fn push(&mut self, pending: Pending) {
        self.transfers.push_back(pending);
    }
}
