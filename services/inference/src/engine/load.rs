//! The requests inside the engine: their number, their prompts that wait, their pages, and the
//! permit that each of them holds from its arrival until its answer has ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::drain::Drain;

/// Counts of what is inside, for metrics and tests.
#[derive(Debug, Default)]
pub struct Load {
    inside: Mutex<Inside>,
    active: AtomicUsize,
    waiting_tokens: AtomicUsize,
    pages: AtomicUsize,
    reserved: AtomicUsize,
    cached: AtomicUsize,
    next_ticket: AtomicU64,
    drain: Mutex<Drain>,
}

/// The requests inside.
#[derive(Debug, Default)]
struct Inside {
    count: usize,
    /// By client; those that have none are missing.
    clients: HashMap<Arc<str>, usize>,
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
        let inside = self.inside.lock().count;
        inside.saturating_sub(self.active())
    }

    /// Returns the tokens of the prompts that wait.
    pub fn waiting_tokens(&self) -> usize {
        self.waiting_tokens.load(Ordering::Relaxed)
    }

    /// Whether requests still waited after the last round.
    pub fn is_blocked(&self) -> bool {
        self.drain.lock().is_blocked()
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

    /// Returns the pages, of those that are not reserved, that are kept for prompts with the same
    /// beginning.
    pub fn pages_cached(&self) -> usize {
        // Kept pages go one by one, when an answer comes to those that are reserved for it.
        self.cached.load(Ordering::Relaxed).min(self.pages_free())
    }

    /// Returns when a request that found no place may come back.
    pub(crate) fn come_back(&self) -> Duration {
        self.drain.lock().come_back(self.waiting())
    }

    /// Takes `count` permits for a client at once; `None` if more than `limit` would be taken then.
    /// The last `kept` of them are for clients that have none.
    pub(crate) fn enter(
        self: &Arc<Self>,
        client: &Arc<str>,
        count: usize,
        (limit, kept): (usize, usize),
    ) -> Option<Vec<Permit>> {
        let mut inside = self.inside.lock();
        let limit = if inside.clients.contains_key(client) {
            limit.saturating_sub(kept)
        } else {
            limit
        };
        if inside.count + count > limit {
            return None;
        }
        inside.count += count;
        *inside.clients.entry(client.clone()).or_default() += count;
        let permit = |_| Permit {
            ticket: Ticket(self.next_ticket.fetch_add(1, Ordering::Relaxed)),
            client: client.clone(),
            tokens: 0,
            load: self.clone(),
        };
        Some((0..count).map(permit).collect())
    }

    fn leave(&self, client: &Arc<str>) {
        let mut inside = self.inside.lock();
        inside.count -= 1;
        if let Some(count) = inside.clients.get_mut(client) {
            *count -= 1;
            if *count == 0 {
                inside.clients.remove(client);
            }
        }
    }

    pub(crate) fn set_active(&self, active: usize, pages: usize) {
        self.active.store(active, Ordering::Relaxed);
        self.reserved.store(pages, Ordering::Relaxed);
    }

    pub(crate) fn set_cached(&self, pages: usize) {
        self.cached.store(pages, Ordering::Relaxed);
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
    client: Arc<str>,
    /// Tokens of the prompt, while it waits.
    tokens: usize,
}

impl Permit {
    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Counts the prompt among those that wait. Returns false if they would have more than `limit`
    /// tokens together. While every request begins at its next round, there is no limit; and a
    /// prompt that waits alone may have any number.
    pub(crate) fn wait(&mut self, tokens: usize, limit: usize) -> bool {
        let limit = if self.load.is_blocked() {
            limit
        } else {
            usize::MAX
        };
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
        self.load.leave(&self.client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_bounded_numbered_and_given_back() {
        let load = Arc::<Load>::default();
        let client = "client".into();
        let enter = || load.enter(&client, 1, (2, 0))?.pop();
        let first = enter().unwrap();
        let second = enter().unwrap();
        assert_ne!(first.ticket(), second.ticket());
        assert!(enter().is_none());
        load.set_active(1, 3);
        assert_eq!((load.active(), load.waiting()), (1, 1));
        drop(first);
        let third = enter().unwrap();
        assert_ne!(third.ticket(), second.ticket());
    }

    #[test]
    fn a_kept_page_that_is_reserved_is_not_free() {
        let load = Load::new(10);
        load.set_cached(8);
        assert_eq!((load.pages_free(), load.pages_cached()), (10, 8));
        load.set_active(1, 7);
        assert_eq!((load.pages_free(), load.pages_cached()), (3, 3));
    }

    #[test]
    fn several_permits_are_taken_at_once_or_not_at_all() {
        let load = Arc::<Load>::default();
        let client = "client".into();
        let enter = |count| load.enter(&client, count, (5, 0));
        let three = enter(3).unwrap();
        assert!(enter(3).is_none());
        let two = enter(2).unwrap();
        assert_eq!((three.len(), two.len(), load.waiting()), (3, 2, 5));
        drop(three);
        assert_eq!(enter(3).unwrap().len(), 3);
        drop(two);
        assert_eq!(load.waiting(), 0);
    }

    #[test]
    fn the_last_permits_are_for_clients_that_have_none() {
        let load = Arc::<Load>::default();
        let [many, one] = ["many", "one"].map(Arc::from);
        let enter = |client| load.enter(client, 1, (4, 1))?.pop();
        let mut permits: Vec<_> = (0..3).map(|_| enter(&many).unwrap()).collect();
        assert!(enter(&many).is_none());
        let last = enter(&one).unwrap();
        assert!(enter(&one).is_none());
        drop(last);
        assert!(enter(&many).is_none());
        permits.clear();
        assert!(load.inside.lock().clients.is_empty());
    }

    #[test]
    fn the_prompts_that_wait_have_a_bound_but_one_alone_may_always_wait() {
        let load = Arc::<Load>::default();
        let enter = || load.enter(&"client".into(), 1, (3, 0))?.pop();
        let [mut first, mut second, mut third] = [(); 3].map(|()| enter().unwrap());
        load.note_round(0, 1);
        assert!(first.wait(100, 10));
        assert!(!second.wait(1, 10));
        first.begin();
        assert!(second.wait(4, 10) && third.wait(6, 10));
        assert_eq!(load.waiting_tokens(), 10);
        drop((second, third));
        assert_eq!(load.waiting_tokens(), 0);
        // A burst that the next round admits has no limit.
        load.note_round(3, 0);
        let [mut first, mut second] = [(); 2].map(|()| enter().unwrap());
        assert!(first.wait(100, 10) && second.wait(100, 10));
    }
}
