//! The number of requests inside the engine, and the permit that each of them holds from its
//! arrival until its answer has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counts of requests inside, for metrics and tests.
#[derive(Debug, Default)]
pub struct Load {
    inside: AtomicUsize,
    active: AtomicUsize,
    next_ticket: AtomicU64,
}

impl Load {
    /// Returns how many answers progress now.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Returns how many requests wait for one of the active to end.
    pub fn waiting(&self) -> usize {
        self.inside
            .load(Ordering::Relaxed)
            .saturating_sub(self.active())
    }

    /// Takes a permit; `None` if `limit` are taken already.
    pub(crate) fn enter(self: &Arc<Self>, limit: usize) -> Option<Permit> {
        let one_more = |inside: usize| (inside < limit).then_some(inside + 1);
        self.inside
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()?;
        Some(Permit {
            ticket: Ticket(self.next_ticket.fetch_add(1, Ordering::Relaxed)),
            load: self.clone(),
        })
    }

    pub(crate) fn set_active(&self, active: usize) {
        self.active.store(active, Ordering::Relaxed);
    }
}

/// The number of a permit: names a request inside the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl Ticket {
    #[cfg(test)]
    pub(crate) fn new(number: u64) -> Self {
        Self(number)
    }
}

/// Permission to be inside, counted in [`Load`]; given back on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    load: Arc<Load>,
    ticket: Ticket,
}

impl Permit {
    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.load.inside.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_bounded_numbered_and_given_back() {
        let load = Arc::<Load>::default();
        let first = load.enter(2).unwrap();
        let second = load.enter(2).unwrap();
        assert_ne!(first.ticket(), second.ticket());
        assert!(load.enter(2).is_none());
        load.set_active(1);
        assert_eq!((load.active(), load.waiting()), (1, 1));
        drop(first);
        let third = load.enter(2).unwrap();
        assert_ne!(third.ticket(), second.ticket());
    }
}
