//! Which pages hold the beginnings of prompts: a tree of full pages, found by their tokens and the
//! page before. Pages are numbers here; who uses a page is the pool's to know.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::ops::decoding::PAGE;

/// What a page's keys and values are made from, beside its tokens and the pages before. An engine
/// has one base in one precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Root {
    /// The adapter's identity; none for the base alone.
    pub(crate) adapter: Option<[u8; 32]>,
}

/// What comes before a page's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Parent {
    /// Nothing.
    Root(Root),
    /// A page of the tree.
    Page(u32),
}

/// The key of a page. Links are compared whole, so that equal hashes mislead nobody.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Link {
    parent: Parent,
    ids: [u32; PAGE],
}

/// A page of the tree.
struct Node {
    link: Arc<Link>,
    children: usize,
    /// When it was last used; none while it is used.
    idle_since: Option<u64>,
}

/// The tree. A page that is used has only used pages before it, so that the pages that nobody uses
/// can all be taken out, leaves first.
#[derive(Default)]
pub(super) struct Prefixes {
    pages: HashMap<Arc<Link>, u32>,
    nodes: HashMap<u32, Node>,
    /// The pages that nobody uses and none follows, by the time of their last use.
    leaves: BTreeSet<(u64, u32)>,
    idle: usize,
    clock: u64,
}

impl Prefixes {
    /// The page after `parent` with these tokens.
    pub(super) fn find(&self, parent: Parent, ids: &[u32; PAGE]) -> Option<u32> {
        self.pages.get(&Link { parent, ids: *ids }).copied()
    }

    /// Whether a page is in the tree.
    pub(super) fn contains(&self, page: u32) -> bool {
        self.nodes.contains_key(&page)
    }

    /// Pages that nobody uses.
    pub(super) fn idle(&self) -> usize {
        self.idle
    }

    /// Adds a used page, which is not in the tree, after a used parent.
    pub(super) fn insert(&mut self, parent: Parent, ids: &[u32; PAGE], page: u32) {
        let link = Arc::new(Link { parent, ids: *ids });
        if let Parent::Page(parent) = parent
            && let Some(parent) = self.nodes.get_mut(&parent)
        {
            parent.children += 1;
        }
        self.pages.insert(Arc::clone(&link), page);
        let node = Node {
            link,
            children: 0,
            idle_since: None,
        };
        self.nodes.insert(page, node);
    }

    /// Notes that a page is used, as all pages before it are.
    pub(super) fn used(&mut self, page: u32) {
        let Some(node) = self.nodes.get_mut(&page) else {
            return;
        };
        if let Some(since) = node.idle_since.take() {
            self.leaves.remove(&(since, page));
            self.idle -= 1;
        }
    }

    /// Notes that nobody uses a page any longer, nor those after it.
    pub(super) fn unused(&mut self, page: u32) {
        let Some(node) = self.nodes.get_mut(&page) else {
            return;
        };
        self.clock += 1;
        self.idle += 1;
        node.idle_since = Some(self.clock);
        if node.children == 0 {
            self.leaves.insert((self.clock, page));
        }
    }

    /// Takes out the page whose use is longest ago among those that nobody uses and none follows.
    pub(super) fn evict(&mut self) -> Option<u32> {
        let (_, page) = self.leaves.pop_first()?;
        let node = self.nodes.remove(&page)?;
        self.idle -= 1;
        self.pages.remove(&node.link);
        if let Parent::Page(before) = node.link.parent
            && let Some(parent) = self.nodes.get_mut(&before)
        {
            parent.children -= 1;
            if let (0, Some(since)) = (parent.children, parent.idle_since) {
                self.leaves.insert((since, before));
            }
        }
        Some(page)
    }
}
