//! A GPU's memory, and the sizes that its memory plan and its implementation have to agree on.

/// The most logits that the loss holds at once on a GPU.
pub(crate) const GPU_LOGITS: usize = 1 << 26;

/// Bytes of scratch for the library's products on a GPU; its Hopper kernels want 32 MiB.
pub(crate) const GPU_WORKSPACE: usize = 32 << 20;

/// The largest rank for which a GPU's decoding kernels have shared memory, as in `adapters.cu`.
pub(crate) const GPU_LARGEST_RANK: usize = 256;

/// A GPU's memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// What this process may still take. Its own unused reserve counts.
    pub available: u64,
    /// All of it.
    pub total: u64,
}
