//! The vocabulary as a double-array trie over characters. A Japanese piece takes one to four
//! steps of one cache line each.

use std::collections::HashMap;

use super::table::CharTable;

/// No node, or no piece.
pub(crate) const NONE: u32 = u32::MAX;

/// The base of a node without children; with any code it is past every node.
const LEAF: u32 = u32::MAX - (1 << 24);

/// Slots that are tried for a set of children before it is appended. It bounds the build time.
const MOST_TRIED: usize = 1 << 12;

/// A node. The children of a node with base `b` are at `b + code`, and their `parent` is the node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    base: u32,
    parent: u32,
    /// The id of the piece that ends here, or [`NONE`].
    pub(crate) value: u32,
    /// Its score.
    pub(crate) score: f32,
}

/// A piece to be put into the trie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) text: &'a str,
    pub(crate) value: u32,
    pub(crate) score: f32,
}

/// A double-array trie.
#[derive(Debug, Clone)]
pub(crate) struct Trie {
    nodes: Vec<Node>,
}

impl Trie {
    /// Builds the trie of distinct, non-empty texts, and returns it with the codes of their
    /// characters. Codes start at 1; frequent characters have low ones, which packs the trie
    /// densely.
    pub(crate) fn build(entries: &[Entry<'_>]) -> (Self, CharTable) {
        let mut counts: HashMap<char, usize> = HashMap::new();
        for c in entries.iter().flat_map(|entry| entry.text.chars()) {
            *counts.entry(c).or_default() += 1;
        }
        let mut by_count: Vec<(char, usize)> = counts.into_iter().collect();
        by_count.sort_by_key(|(c, count)| (std::cmp::Reverse(*count), *c));
        let mut codes = CharTable::new();
        for (at, (c, _)) in by_count.iter().enumerate() {
            *codes.entry(*c) = at as u32 + 1; // Below 2^24: there are 1,112,064 characters.
        }
        let encode = |text: &str| text.chars().map(|c| codes.get(c)).collect();
        let mut keys: Vec<(Vec<u32>, Entry<'_>)> = entries
            .iter()
            .map(|entry| (encode(entry.text), *entry))
            .collect();
        keys.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut builder = Builder::new();
        builder.build(&keys);
        (
            Self {
                nodes: builder.nodes,
            },
            codes,
        )
    }

    /// The node where every text starts.
    pub(crate) const ROOT: u32 = 0;

    /// Returns the child of a node by code, and its index. Code 0 has no child.
    #[inline(always)]
    pub(crate) fn child(&self, node: u32, base: u32, code: u32) -> Option<(u32, &Node)> {
        let at = base + code;
        let child = self.nodes.get(at as usize)?;
        (child.parent == node).then_some((at, child))
    }

    /// The base of the root.
    #[inline]
    pub(crate) fn root_base(&self) -> u32 {
        self.nodes[Self::ROOT as usize].base
    }
}

impl Node {
    /// The index that a child's code is added to.
    #[inline(always)]
    pub(crate) fn base(&self) -> u32 {
        self.base
    }
}

/// The array while it grows, with its free slots in a doubly linked ring through slot 0 (the
/// root's, never free).
struct Builder {
    nodes: Vec<Node>,
    next_free: Vec<u32>,
    last_free: Vec<u32>,
}

impl Builder {
    fn new() -> Self {
        let root = Node {
            base: LEAF,
            parent: NONE,
            value: NONE,
            score: 0.0,
        };
        Self {
            nodes: vec![root],
            next_free: vec![0],
            last_free: vec![0],
        }
    }

    fn build(&mut self, keys: &[(Vec<u32>, Entry<'_>)]) {
        // Nodes whose children are not placed yet: index, range of keys, depth.
        let mut open = vec![(Trie::ROOT, 0, keys.len(), 0)];
        while let Some((node, mut from, to, depth)) = open.pop() {
            if let (key, entry) = &keys[from]
                && key.len() == depth
            {
                let node = &mut self.nodes[node as usize];
                (node.value, node.score) = (entry.value, entry.score);
                from += 1;
            }
            let mut children: Vec<(u32, usize, usize)> = Vec::new();
            for (at, (key, _)) in keys[from..to].iter().enumerate() {
                match children.last_mut() {
                    Some((code, _, end)) if *code == key[depth] => *end = from + at + 1,
                    _ => children.push((key[depth], from + at, from + at + 1)),
                }
            }
            if children.is_empty() {
                continue;
            }
            let base = self.place(&children);
            self.nodes[node as usize].base = base;
            for (code, from, to) in children {
                let at = base + code;
                self.take(at);
                self.nodes[at as usize].parent = node;
                open.push((at, from, to, depth + 1));
            }
        }
        self.nodes.shrink_to_fit();
    }

    /// Returns a base at which all the children's slots are free. The codes are ascending.
    fn place(&mut self, children: &[(u32, usize, usize)]) -> u32 {
        let lowest = children[0].0;
        let highest = children[children.len() - 1].0;
        let mut slot = self.next_free[0];
        let mut tried = 0;
        while slot != 0 && tried < MOST_TRIED {
            if slot >= lowest
                && children
                    .iter()
                    .all(|(code, ..)| self.is_free(slot - lowest + code))
            {
                self.grow((slot - lowest + highest) as usize + 1);
                return slot - lowest;
            }
            slot = self.next_free[slot as usize];
            tried += 1;
        }
        let base = (self.nodes.len() as u32).saturating_sub(lowest).max(1);
        self.grow((base + highest) as usize + 1);
        base
    }

    fn is_free(&self, slot: u32) -> bool {
        let Some(node) = self.nodes.get(slot as usize) else {
            return true;
        };
        node.parent == NONE && slot != Trie::ROOT
    }

    fn grow(&mut self, length: usize) {
        for slot in self.nodes.len()..length {
            let last = self.last_free[0];
            self.nodes.push(Node {
                base: LEAF,
                parent: NONE,
                value: NONE,
                score: 0.0,
            });
            self.next_free.push(0);
            self.last_free.push(last);
            self.next_free[last as usize] = slot as u32;
            self.last_free[0] = slot as u32;
        }
    }

    fn take(&mut self, slot: u32) {
        let (next, last) = (self.next_free[slot as usize], self.last_free[slot as usize]);
        self.next_free[last as usize] = next;
        self.last_free[next as usize] = last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(trie: &Trie, codes: &CharTable, text: &str) -> Option<u32> {
        let (mut node, mut base, mut value) = (Trie::ROOT, trie.root_base(), NONE);
        for c in text.chars() {
            let code = codes.get(c);
            let (at, child) = if code == 0 {
                None
            } else {
                trie.child(node, base, code)
            }?;
            (node, base, value) = (at, child.base(), child.value);
        }
        (value != NONE).then_some(value)
    }

    #[test]
    fn finds_what_was_put_in_and_nothing_else() {
        let mut texts: Vec<String> = (0..3_000_u32)
            .map(|n| {
                let c = |shift: u32| char::from_u32(0x3041 + ((n * 7919) >> shift) % 90).unwrap();
                format!("{}{}{n}", c(0), c(3))
            })
            .collect();
        texts.extend(["あ", "ab", "abc", "漢字", "😀"].map(str::to_owned));
        let entries: Vec<Entry<'_>> = texts
            .iter()
            .enumerate()
            .map(|(at, text)| Entry {
                text,
                value: at as u32,
                score: 0.0,
            })
            .collect();
        let (trie, codes) = Trie::build(&entries);
        for (at, text) in texts.iter().enumerate() {
            assert_eq!(find(&trie, &codes, text), Some(at as u32), "{text}");
        }
        for missing in ["a", "abcd", "漢", "", "い", "ん0", "😀😀"] {
            assert_eq!(find(&trie, &codes, missing), None, "{missing}");
        }
        // The trie is dense.
        let used = trie.nodes.iter().filter(|node| node.parent != NONE).count();
        assert!(
            used * 10 > trie.nodes.len() * 8,
            "{used} of {}",
            trie.nodes.len()
        );
    }
}
