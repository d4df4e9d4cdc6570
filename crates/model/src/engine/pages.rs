//! Which pages of keys and values are free, and which belong to which sequence. The device stores
//! them; here they are numbers.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Result};
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
    /// The most pages that may exist; without it, as many as the device has memory for.
    limit: Option<u32>,
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

    /// The pages that sequences have, and the most that may exist.
    pub(super) fn used(&self) -> (u32, Option<u32>) {
        let state = self.state.lock();
        (state.made - state.free.len() as u32, state.limit)
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

    /// Sets the most pages that may exist.
    pub(super) fn limit(&self, pages: u32) {
        self.state.lock().limit = Some(pages);
    }
}

impl PageTable {
    pub(super) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Adds pages until there is one for each of these tokens.
    ///
    /// # Errors
    /// [`Error::OutOfPages`] if the pool's limit is reached; the table is then unchanged.
    pub(super) fn reserve(&mut self, tokens: usize) -> Result<()> {
        let missing = tokens.div_ceil(PAGE).saturating_sub(self.pages.len());
        let mut state = self.state.lock();
        let reused = missing.min(state.free.len());
        let new = (missing - reused) as u32;
        if let Some(limit) = state.limit
            && state.made + new > limit
        {
            let free = limit - state.made + state.free.len() as u32;
            return Err(Error::OutOfPages {
                needed: missing,
                free: free as usize,
                limit: limit as usize,
            });
        }
        let kept = state.free.len() - reused;
        self.pages.extend(state.free.drain(kept..).rev());
        self.pages.extend(state.made..state.made + new);
        state.made += new;
        Ok(())
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
    fn pages_are_used_again_and_the_limit_holds() {
        let pool = PagePool::new();
        pool.limit(3);
        let (mut one, mut two) = (pool.table(), pool.table());
        one.reserve(PAGE + 1).unwrap();
        two.reserve(1).unwrap();
        assert_eq!((one.pages(), two.pages()), (&[0, 1][..], &[2][..]));
        two.reserve(PAGE).unwrap();
        assert_eq!(two.pages(), [2]);
        let refused = two.reserve(PAGE + 1).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "1 more pages of 32 tokens are needed, 0 of 3 are free"
        );
        assert_eq!(two.pages(), [2]);
        drop(one);
        assert_eq!(pool.used(), (1, Some(3)));
        two.reserve(3 * PAGE).unwrap();
        assert_eq!((two.pages().len(), pool.made()), (3, 3));
        assert!(!pool.forget_unused());
        drop(two);
        assert_eq!(pool.used(), (0, Some(3)));
        assert!(pool.forget_unused());
        assert_eq!(pool.made(), 0);
    }

    #[test]
    fn a_table_of_another_pool_is_known() {
        let (ours, theirs) = (PagePool::new(), PagePool::new());
        assert!(ours.owns(&ours.table()) && !ours.owns(&theirs.table()));
    }
}
