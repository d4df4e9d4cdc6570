//! The recorded passes of decoding, and the buffers that all passes share.

use std::collections::HashMap;

use cudarc::driver::{CudaGraph, PinnedHostSlice};
use parking_lot::RwLock;

use super::array::{Array, Buffer};

/// Held by threads that wait for all of a GPU, and alone by one that records: the driver lets
/// nothing wait for a GPU while a pass is recorded.
pub(super) static RECORDING: RwLock<()> = RwLock::new(());

/// Everything that the launches of a pass depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PassKey {
    /// All rows, and those that may have a token.
    pub(super) padded: usize,
    pub(super) rows: usize,
    /// Parts of the longest row's keys.
    pub(super) splits: usize,
    /// The targets that some row's adapter has, and the largest rank.
    pub(super) targets: [bool; 4],
    pub(super) rank: usize,
}

/// What passes of decoding have on the GPU for as long as the engine lives.
#[derive(Default)]
pub(super) struct Steps {
    /// Of passes with this many rows: their tokens, positions, pages and adapters.
    pub(super) inputs: HashMap<usize, Buffer<u8>>,
    /// Pinned memory for what a pass returns.
    pub(super) returned: Option<PinnedHostSlice<f32>>,
    pub(super) passes: HashMap<PassKey, Recorded>,
}

/// A pass that was seen before.
pub(super) enum Recorded {
    /// It has run, so that its products have their plans.
    Seen,
    /// Its graph, and the matrix that the graph writes.
    Graph(Graph, Array),
    /// It could not be recorded.
    Never,
}

/// A graph that one thread at a time uses.
pub(super) struct Graph(pub(super) CudaGraph);

// SAFETY: a graph belongs to no thread. It is used while the lock of `Steps` is held.
unsafe impl Send for Graph {}
