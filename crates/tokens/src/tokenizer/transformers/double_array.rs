//! Packs rules of single characters as SentencePiece packs a model's: the form that `charsmap`
//! unpacks, and that the tokenizers library reads.

use std::collections::{BTreeMap, HashMap, HashSet};

/// Bytes of a key that may follow one another; the children of a node lie in one block of as many
/// units.
const BLOCK: usize = 256;
/// Marks a unit that has a value below it.
const HAS_LEAF: u32 = 1 << 8;
/// Marks a unit that is a value.
const LEAF: u32 = 1 << 31;
/// The bits below an offset.
const OFFSET_SHIFT: u32 = 10;

/// Returns the packed rules: the trie's size in bytes, its units, and the texts, each with a NUL.
pub(super) fn pack(rules: &BTreeMap<char, String>) -> Vec<u8> {
    let mut texts = Vec::new();
    let mut starts: HashMap<&str, u32> = HashMap::new();
    let mut root = Node::default();
    for (key, text) in rules {
        let start = *starts.entry(text).or_insert_with(|| {
            let start = texts.len() as u32; // A model's file is smaller than 4 GiB.
            texts.extend_from_slice(text.as_bytes());
            texts.push(0);
            start
        });
        root.insert(key.encode_utf8(&mut [0; 4]).as_bytes(), start);
    }
    let mut array = Array::default();
    array.grow(BLOCK);
    array.taken[0] = true;
    array.place(&root, 0);
    let size = 4 * array.units.len() as u32;
    let units = array.units.iter().flat_map(|unit| unit.to_le_bytes());
    size.to_le_bytes()
        .into_iter()
        .chain(units)
        .chain(texts)
        .collect()
}

/// A node of the trie over bytes.
#[derive(Default)]
struct Node {
    value: Option<u32>,
    children: BTreeMap<u8, Node>,
}

impl Node {
    fn insert(&mut self, key: &[u8], value: u32) {
        match key {
            [] => self.value = Some(value),
            [first, rest @ ..] => self.children.entry(*first).or_default().insert(rest, value),
        }
    }

    /// The labels below this node; a value has the label 0, which no key has as a byte.
    fn labels(&self) -> impl Iterator<Item = usize> {
        let value = self.value.map(|_| 0);
        value
            .into_iter()
            .chain(self.children.keys().map(|byte| usize::from(*byte)))
    }
}

#[derive(Default)]
struct Array {
    units: Vec<u32>,
    taken: Vec<bool>,
    /// No two nodes have the same base: a child of one would be found as the other's.
    bases: HashSet<usize>,
}

impl Array {
    fn grow(&mut self, by: usize) {
        self.units.resize(self.units.len() + by, 0);
        self.taken.resize(self.units.len(), false);
    }

    /// Places what is below a node whose own unit is at `at`.
    fn place(&mut self, node: &Node, at: usize) {
        let base = self.free_base(node);
        self.bases.insert(base);
        for label in node.labels() {
            self.taken[base ^ label] = true;
        }
        self.units[at] |= ((at ^ base) as u32) << OFFSET_SHIFT;
        if let Some(value) = node.value {
            self.units[at] |= HAS_LEAF;
            self.units[base] = value | LEAF;
        }
        for (byte, child) in &node.children {
            let place = base ^ usize::from(*byte);
            self.units[place] |= u32::from(*byte);
            self.place(child, place);
        }
    }

    /// Returns a base at which the units of all labels are free. A base is never 0: its node would
    /// lead back to the root.
    fn free_base(&mut self, node: &Node) -> usize {
        let mut base = 1;
        loop {
            while base / BLOCK * BLOCK + BLOCK > self.units.len() {
                self.grow(BLOCK);
            }
            let free = |label: usize| !self.taken[base ^ label];
            if !self.bases.contains(&base) && node.labels().all(free) {
                return base;
            }
            base += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::charsmap;

    #[test]
    fn packed_rules_are_unpacked_again() {
        let mut rules = BTreeMap::new();
        for n in 0..5_000_u32 {
            let key = char::from_u32(1 + n * 197 % 0xd000).unwrap();
            rules.insert(key, format!("{}{}", n % 7, "あ".repeat(n as usize % 3)));
        }
        rules.insert('😀', String::new());
        let packed = pack(&rules);
        let unpacked = charsmap::rules(&packed).unwrap();
        let unpacked: BTreeMap<char, String> = unpacked
            .iter()
            .map(|(key, text)| (key.chars().next().unwrap(), text.to_owned()))
            .collect();
        assert_eq!(unpacked, rules);
        let none = pack(&BTreeMap::new());
        assert_eq!(charsmap::rules(&none).unwrap().iter().count(), 0);
    }
}
