//! The requests inside the engine: their number, their prompts that wait, their pages, and the
//! permit that each of them holds from its arrival until its answer has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::engine::drain::Drain;

/// Counts of what is inside, for metrics and tests.
#[derive(Debug, Default)]
pub struct Load {
    inside: AtomicUsize,
    active: AtomicUsize,
    waiting_tokens: AtomicUsize,
    pages: AtomicUsize,
    reserved: AtomicUsize,
    next_ticket: AtomicU64,
    drain: Mutex<Drain>,
}

impl Load {
    /// A load over this many pages.
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            pages: pages.into(),
            ..Self::default()
        }
    }

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

    /// Returns the tokens of the prompts that wait.
    pub fn waiting_tokens(&self) -> usize {
        self.waiting_tokens.load(Ordering::Relaxed)
    }

    /// Returns the pages of keys and values that are reserved for the active answers.
    pub fn pages_used(&self) -> usize {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Returns the pages that are not reserved.
    pub fn pages_free(&self) -> usize {
        let pages = self.pages.load(Ordering::Relaxed);
        pages.saturating_sub(self.pages_used())
    }

    /// Returns when a request that found no place may come back.
    pub(crate) fn come_back(&self) -> Duration {
        self.drain.lock().come_back(self.waiting())
    }

    /// Takes a permit; `None` if `limit` are taken already.
    pub(crate) fn enter(self: &Arc<Self>, limit: usize) -> Option<Permit> {
        let one_more = |inside: usize| (inside < limit).then_some(inside + 1);
        self.inside
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()?;
        Some(Permit {
            ticket: Ticket(self.next_ticket.fetch_add(1, Ordering::Relaxed)),
            tokens: 0,
            load: self.clone(),
        })
    }

    pub(crate) fn set_active(&self, active: usize, pages: usize) {
        self.active.store(active, Ordering::Relaxed);
        self.reserved.store(pages, Ordering::Relaxed);
    }

    /// Notes a round: how many requests begin, and how many still wait.
    pub(crate) fn note_round(&self, begun: usize, waiting: usize) {
        self.drain.lock().note(Instant::now(), begun, waiting);
    }
}

/// The number of a permit: names a request inside the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ticket(u64);

#[cfg(test)]
impl Ticket {
    pub(crate) fn new(number: u64) -> Self {
        Self(number)
    }

    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// Permission to be inside, counted in [`Load`]; given back on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    load: Arc<Load>,
    ticket: Ticket,
    /// Tokens of the prompt, while it waits.
    tokens: usize,
}

impl Permit {
    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Counts the prompt among those that wait. Returns false if they would have more than `limit`
    /// tokens together; a prompt that waits alone may have any number.
    pub(crate) fn wait(&mut self, tokens: usize, limit: usize) -> bool {
        let more = |waiting: usize| {
            let all = waiting + tokens;
            (waiting == 0 || all <= limit).then_some(all)
        };
        let waiting = &self.load.waiting_tokens;
        let added = waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        if added.is_ok() {
            self.tokens += tokens;
        }
        added.is_ok()
    }

    /// Counts the prompt no longer: its answer begins.
    pub(crate) fn begin(&mut self) {
        let tokens = std::mem::take(&mut self.tokens);
        self.load
            .waiting_tokens
            .fetch_sub(tokens, Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.begin();
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
        load.set_active(1, 3);
        assert_eq!((load.active(), load.waiting()), (1, 1));
        drop(first);
        let third = load.enter(2).unwrap();
        assert_ne!(third.ticket(), second.ticket());
    }

    #[test]
    fn the_prompts_that_wait_have_a_bound_but_one_alone_may_always_wait() {
        let load = Arc::<Load>::default();
        let [mut first, mut second, mut third] = [(); 3].map(|()| load.enter(3).unwrap());
        assert!(first.wait(100, 10));
        assert!(!second.wait(1, 10));
        first.begin();
        assert!(second.wait(4, 10) && third.wait(6, 10));
        assert_eq!(load.waiting_tokens(), 10);
        drop((second, third));
        assert_eq!(load.waiting_tokens(), 0);
    }
}
