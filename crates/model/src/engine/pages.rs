//! Which pages of keys and values are free, which belong to sequences, and which only hold the
//! beginning of a prompt. The device stores them; here they are numbers.

use std::sync::Arc;

use parking_lot::Mutex;

use super::prefixes::{Parent, Prefixes, Root};
use crate::ops::decoding::PAGE;

/// The pages of an engine.
pub(super) struct PagePool {
    state: Arc<Mutex<State>>,
}

/// How many pages the beginnings of prompts may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixLimits {
    /// Pages that are kept while no sequence has them; 0 for none.
    pub kept: usize,
    /// Pages that exist before kept ones are given away for sequences.
    pub pages: usize,
}

/// Each page that exists is free, has users, or is kept in the tree.
#[derive(Default)]
struct State {
    free: Vec<u32>,
    /// For each page that exists on the device, how many sequences have it.
    users: Vec<u32>,
    /// Pages with users.
    used: usize,
    prefixes: Prefixes,
    limits: PrefixLimits,
}

/// A sequence's pages, in the order of its tokens. Dropping it frees them, but for those that are
/// kept.
pub(super) struct PageTable {
    pages: Vec<u32>,
    /// The first pages of these are in the tree.
    shared: usize,
    state: Arc<Mutex<State>>,
}

/// A page whose values another one is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) from: u32,
    pub(super) to: u32,
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
            shared: 0,
            state: Arc::clone(&self.state),
        }
    }

    /// Whether a table's pages are of this pool.
    pub(super) fn owns(&self, table: &PageTable) -> bool {
        Arc::ptr_eq(&self.state, &table.state)
    }

    /// Pages that exist on the device.
    pub(super) fn made(&self) -> u32 {
        self.state.lock().users.len() as u32
    }

    /// The pages that sequences have.
    pub(super) fn used(&self) -> usize {
        self.state.lock().used
    }

    /// The pages that are kept and that no sequence has.
    pub(super) fn kept(&self) -> usize {
        self.state.lock().prefixes.idle()
    }

    /// Keeps beginnings of prompts from now on, within these limits.
    pub(super) fn limit(&self, limits: PrefixLimits) {
        let mut state = self.state.lock();
        state.limits = limits;
        state.give_up_kept();
    }

    /// Makes no more pages while kept ones can be given away. Returns whether there are any.
    pub(super) fn limit_to_made(&self) -> bool {
        let mut state = self.state.lock();
        state.limits.pages = state.users.len();
        state.prefixes.idle() > 0
    }

    /// Forgets the pages above the first `made`, which are all free.
    pub(super) fn forget_above(&self, made: u32) {
        let mut state = self.state.lock();
        state.free.retain(|&page| page < made);
        state.users.truncate(made as usize);
    }

    /// Forgets all pages if no sequence has any; returns whether it did.
    pub(super) fn forget_unused(&self) -> bool {
        let mut state = self.state.lock();
        let unused = state.used == 0;
        if unused {
            state.free.clear();
            state.users.clear();
            state.prefixes = Prefixes::default();
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
        self.pages.extend((0..missing).map(|_| state.take()));
    }

    /// Frees the pages after the first `count`.
    pub(super) fn truncate(&mut self, count: usize) {
        let freed = self.pages.drain(count.min(self.pages.len())..);
        let mut state = self.state.lock();
        // The last first, so that those before it are kept longer.
        freed.rev().for_each(|page| state.give_back(page));
    }

    /// Takes the shared pages with which a prompt goes on after those of the table, all of which
    /// are shared and full: as many as are found of the first `most` pages.
    pub(super) fn adopt(&mut self, root: Root, ids: &[u32], most: usize) {
        let before = self.pages.len();
        if self.shared < before {
            return;
        }
        let mut state = self.state.lock();
        let mut found = Vec::new();
        let last = self.pages.last();
        let mut parent = last.map_or(Parent::Root(root), |&page| Parent::Page(page));
        for ids in ids.as_chunks::<PAGE>().0.iter().take(most).skip(before) {
            let Some(page) = state.prefixes.find(parent, ids) else {
                break;
            };
            found.push(page);
            parent = Parent::Page(page);
        }
        found.iter().for_each(|&page| state.add_user(page));
        self.pages.extend(found);
        self.shared = self.pages.len();
    }

    /// Offers the full pages of `ids`, with which the sequence begins and which it has read, to
    /// other sequences. Where the tree has a page of the same values, the table takes that one.
    pub(super) fn share(&mut self, root: Root, ids: &[u32]) {
        let chunks = ids.as_chunks::<PAGE>().0;
        if self.shared >= chunks.len() {
            return;
        }
        let mut state = self.state.lock();
        if state.limits.kept == 0 {
            return;
        }
        for (place, ids) in chunks.iter().enumerate().skip(self.shared) {
            let parent = match place.checked_sub(1) {
                Some(before) => Parent::Page(self.pages[before]),
                None => Parent::Root(root),
            };
            let own = self.pages[place];
            match state.prefixes.find(parent, ids) {
                None => state.prefixes.insert(parent, ids, own),
                Some(page) => {
                    state.add_user(page);
                    state.give_back(own);
                    self.pages[place] = page;
                }
            }
        }
        self.shared = chunks.len();
    }

    /// A table that begins with the same tokens: it has the same full pages, and its own of one
    /// that is not full, whose values are to be copied.
    pub(super) fn fork(&self, tokens: usize) -> (Self, Option<Copied>) {
        let full = tokens / PAGE;
        let mut state = self.state.lock();
        let mut pages = self.pages[..full].to_vec();
        pages.iter().for_each(|&page| state.add_user(page));
        let copied = (!tokens.is_multiple_of(PAGE)).then(|| Copied {
            from: self.pages[full],
            to: state.take(),
        });
        pages.extend(copied.map(|copied| copied.to));
        let fork = Self {
            pages,
            shared: self.shared.min(full),
            state: Arc::clone(&self.state),
        };
        (fork, copied)
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

impl State {
    /// A page for a sequence: a free one, a new one while there are fewer than the limit, or one
    /// that was only kept.
    fn take(&mut self) -> u32 {
        let page = self.free.pop().or_else(|| {
            let may_grow = self.users.len() < self.limits.pages;
            (!may_grow).then(|| self.prefixes.evict())?
        });
        let page = page.unwrap_or_else(|| {
            self.users.push(0);
            self.users.len() as u32 - 1
        });
        self.users[page as usize] = 1;
        self.used += 1;
        page
    }

    fn add_user(&mut self, page: u32) {
        let users = &mut self.users[page as usize];
        *users += 1;
        if *users == 1 {
            self.used += 1;
            self.prefixes.used(page);
        }
    }

    fn give_back(&mut self, page: u32) {
        let users = &mut self.users[page as usize];
        *users -= 1;
        if *users > 0 {
            return;
        }
        self.used -= 1;
        if self.prefixes.contains(page) {
            self.prefixes.unused(page);
            self.give_up_kept();
        } else {
            self.free.push(page);
        }
    }

    /// Frees kept pages beyond the limit.
    fn give_up_kept(&mut self) {
        while self.prefixes.idle() > self.limits.kept {
            let Some(page) = self.prefixes.evict() else {
                return;
            };
            self.free.push(page);
        }
    }
}

#[cfg(test)]
mod tests;
