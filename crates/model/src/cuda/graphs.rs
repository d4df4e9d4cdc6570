//! The recorded decode passes, and the buffers that all passes share.

use std::collections::HashMap;

use cudarc::driver::{CudaGraph, PinnedHostSlice};
use parking_lot::RwLock;

use super::array::{Array, Buffer};
use super::reuse::Reused;

/// Held shared by threads that synchronize with the whole GPU, and exclusively by a thread that
/// records: the driver allows no such synchronization while a pass is recorded.
pub(super) static RECORDING: RwLock<()> = RwLock::new(());

/// Everything that a pass's launches depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PassKey {
    /// Rows with padding, and rows that may have a token.
    pub(super) padded: usize,
    pub(super) rows: usize,
    /// Splits of the longest row's keys.
    pub(super) splits: usize,
    /// Targets of any row's adapter, and the largest rank, rounded up to a multiple of 8.
    pub(super) targets: [bool; 4],
    pub(super) rank: usize,
}

/// Buffers and graphs of decode passes, kept for the engine's lifetime.
#[derive(Default)]
pub(super) struct Steps {
    /// Input buffers by number of rows: tokens, positions, pages and adapters.
    pub(super) inputs: HashMap<usize, Buffer<u8>>,
    /// Pinned memory for results, which nobody uses now.
    pub(super) returned: Vec<PinnedHostSlice<f32>>,
    pub(super) passes: HashMap<PassKey, Recorded>,
    /// The buffers of all graphs.
    pub(super) reused: Reused,
}

/// The state of a pass that was seen before.
pub(super) enum Recorded {
    /// It has run, so its products have plans.
    Seen,
    /// Its graph, and the graph's output matrix.
    Graph(Graph, Array),
    /// It could not be recorded.
    Never,
}

/// A graph; one thread at a time uses it.
pub(super) struct Graph(pub(super) CudaGraph);

// SAFETY: a graph is not bound to a thread. It is used only under the lock of `Steps`.
unsafe impl Send for Graph {}
