//! The parts that one slot of a worker works with.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::context::Context;
use crate::jobs::Jobs;

/// One place for a job.
pub(super) struct Slot<H> {
    pub(super) context: Context,
    pub(super) jobs: Jobs,
    pub(super) handler: Arc<H>,
    /// Jobs of all slots until the process stops; `None` without a limit.
    pub(super) left: Option<Arc<AtomicU64>>,
}
