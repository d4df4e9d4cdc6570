//! The number of requests inside the engine, and the permit that each of them holds from its
//! arrival until its answer has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts of requests inside; read by metrics and tests.
#[derive(Debug, Default)]
pub struct Load {
    inside: AtomicUsize,
    active: AtomicUsize,
}

impl Load {
    /// Answers that progress now.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Requests that wait for a place among them.
    pub fn waiting(&self) -> usize {
        self.inside
            .load(Ordering::Relaxed)
            .saturating_sub(self.active())
    }

    /// Takes a permit, if fewer than `limit` are taken.
    pub(crate) fn enter(self: &Arc<Self>, limit: usize) -> Option<Permit> {
        let one_more = |inside: usize| (inside < limit).then_some(inside + 1);
        self.inside
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
            .then(|| Permit(self.clone()))
    }

    pub(crate) fn set_active(&self, active: usize) {
        self.active.store(active, Ordering::Relaxed);
    }
}

/// Leave to be inside, counted in [`Load`]; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Load>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Relaxed);
    }
}
