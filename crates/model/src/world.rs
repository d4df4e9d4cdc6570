//! The processes of one training.

/// The place of a process among the processes of one training. One process is built so far; the
/// type is where several GPUs come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// The number of this process, from 0.
    pub rank: usize,
    /// The count of processes.
    pub size: usize,
}

impl World {
    /// A single process.
    pub const ALONE: Self = Self { rank: 0, size: 1 };
}
