//! Which pages of keys and values are free, and which belong to which sequence. The device stores
//! them; here they are numbers.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::ops::decoding::PAGE;

/// The pages of an engine.
pub(super) struct PagePool {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    free: Vec<u32>,
    /// Pages that exist on the device, free or not.
    made: u32,
}

/// A sequence's pages, in the order of its tokens. Dropping it frees them.
pub(super) struct PageTable {
    pages: Vec<u32>,
    state: Arc<Mutex<State>>,
}

impl PagePool {
    pub(super) fn new() -> Self {
        Self {
            state: Arc::default(),
        }
    }

    /// A table without pages.
    pub(super) fn table(&self) -> PageTable {
        PageTable {
            pages: Vec::new(),
            state: Arc::clone(&self.state),
        }
    }

    /// Whether a table's pages are of this pool.
    pub(super) fn owns(&self, table: &PageTable) -> bool {
        Arc::ptr_eq(&self.state, &table.state)
    }

    /// Pages that exist on the device.
    pub(super) fn made(&self) -> u32 {
        self.state.lock().made
    }

    /// The pages that sequences have.
    pub(super) fn used(&self) -> usize {
        let state = self.state.lock();
        state.made as usize - state.free.len()
    }

    /// Forgets the pages above the first `made`, which no sequence has.
    pub(super) fn forget_above(&self, made: u32) {
        let mut state = self.state.lock();
        state.free.retain(|&page| page < made);
        state.made = made;
    }

    /// Forgets all pages if no sequence has any; returns whether it did.
    pub(super) fn forget_unused(&self) -> bool {
        let mut state = self.state.lock();
        let unused = state.made as usize == state.free.len();
        if unused {
            state.free.clear();
            state.made = 0;
        }
        unused
    }
}

impl PageTable {
    pub(super) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Adds pages until there is one for each of these tokens.
    pub(super) fn reserve(&mut self, tokens: usize) {
        let missing = tokens.div_ceil(PAGE).saturating_sub(self.pages.len());
        let mut state = self.state.lock();
        let reused = missing.min(state.free.len());
        let new = (missing - reused) as u32;
        let kept = state.free.len() - reused;
        self.pages.extend(state.free.drain(kept..).rev());
        self.pages.extend(state.made..state.made + new);
        state.made += new;
    }

    /// Frees the pages after the first `count`.
    pub(super) fn truncate(&mut self, count: usize) {
        let freed = self.pages.drain(count.min(self.pages.len())..);
        self.state.lock().free.extend(freed);
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        self.state.lock().free.append(&mut self.pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_used_again() {
        let pool = PagePool::new();
        let (mut one, mut two) = (pool.table(), pool.table());
        one.reserve(PAGE + 1);
        two.reserve(1);
        assert_eq!((one.pages(), two.pages()), (&[0, 1][..], &[2][..]));
        two.reserve(PAGE);
        assert_eq!((two.pages(), pool.used()), (&[2][..], 3));
        drop(one);
        assert_eq!(pool.used(), 1);
        two.reserve(3 * PAGE);
        assert_eq!((two.pages().len(), pool.made()), (3, 3));
        assert!(!pool.forget_unused());
        drop(two);
        assert_eq!(pool.used(), 0);
        assert!(pool.forget_unused());
        assert_eq!(pool.made(), 0);
    }

    #[test]
    fn pages_that_the_device_has_no_memory_for_are_forgotten() {
        let pool = PagePool::new();
        let (mut kept, mut grown) = (pool.table(), pool.table());
        kept.reserve(PAGE);
        grown.reserve(PAGE);
        let made = pool.made();
        grown.reserve(4 * PAGE);
        grown.truncate(1);
        pool.forget_above(made);
        assert_eq!((pool.made(), pool.used()), (2, 2));
        drop(kept);
        grown.reserve(3 * PAGE);
        assert_eq!((grown.pages(), pool.made()), (&[1, 0, 2][..], 3));
    }

    #[test]
    fn a_table_of_another_pool_is_known() {
        let (ours, theirs) = (PagePool::new(), PagePool::new());
        assert!(ours.owns(&ours.table()) && !ours.owns(&theirs.table()));
    }
}
