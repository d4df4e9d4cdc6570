//! Unpacks a model's precompiled normalization rules: a double-array trie of UTF-8 keys and a blob
//! of NUL-terminated texts.
//!
//! The trie is walked once into a list of rules, and every index is checked. The packed form is not
//! used afterwards.

use std::ops::Range;

use crate::error::{Error, Result};

/// Texts and their replacements. The standard rules have more than 10^5 keys, mostly of composed
/// Hangul, so that the keys share one buffer and the replacements stay where they are.
#[derive(Debug)]
pub(crate) struct Rules<'a> {
    keys: String,
    rules: Vec<Rule<'a>>,
}

#[derive(Debug)]
struct Rule<'a> {
    key: Range<u32>,
    replacement: &'a str,
}

impl Rules<'_> {
    /// Returns each key with its replacement, longer keys first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let rules = self.rules.iter();
        rules.map(|rule| (key(&self.keys, rule), rule.replacement))
    }
}

fn key<'a>(keys: &'a str, rule: &Rule<'_>) -> &'a str {
    &keys[rule.key.start as usize..rule.key.end as usize]
}

/// A file with far more steps than the standard rules is refused.
const MOST_STEPS: usize = 1 << 22;
const LONGEST_KEY: usize = 64;

/// Returns the rules of a charsmap: a length (u32, little-endian), the trie's units (u32 each), and
/// the texts.
pub(crate) fn rules(blob: &[u8]) -> Result<Rules<'_>> {
    let refuse = |reason: &str| Error::tokenizer(format!("its normalization rules {reason}"));
    let Some((size, rest)) = blob.split_first_chunk::<4>() else {
        return Err(refuse("are cut off"));
    };
    let size = u32::from_le_bytes(*size) as usize;
    if size > rest.len() || size == 0 || !size.is_multiple_of(4) {
        return Err(refuse("have an impossible size"));
    }
    let (units, texts) = rest.split_at(size);
    if texts.last().is_some_and(|byte| *byte != 0) {
        return Err(refuse("are cut off within a text"));
    }
    let units = units.chunks_exact(4).map(|unit| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(unit);
        Unit(u32::from_le_bytes(bytes))
    });
    let trie = Trie {
        units: units.collect(),
    };

    let (mut rules, mut keys) = (Vec::new(), String::new());
    let mut key = Vec::new();
    let mut steps = 0;
    // Steps to nodes that are not visited yet.
    let mut open = Vec::new();
    trie.push_children(trie.units[0].offset(), &key, &mut open);
    while let Some(step) = open.pop() {
        steps += 1;
        if steps > MOST_STEPS || step.depth >= LONGEST_KEY {
            return Err(refuse("are far larger than any real ones"));
        }
        key.truncate(step.depth);
        key.push(step.byte);
        if let Some(start) = step.value {
            let Ok(key) = std::str::from_utf8(&key) else {
                return Err(refuse("have a key that is not UTF-8"));
            };
            let text = texts
                .get(start..)
                .ok_or_else(|| refuse("point past their texts"))?;
            let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
            let Ok(text) = std::str::from_utf8(text) else {
                return Err(refuse("have a text that is not UTF-8"));
            };
            // Within u32: steps and the length of a key are limited.
            let from = keys.len() as u32;
            keys.push_str(key);
            rules.push(Rule {
                key: from..keys.len() as u32,
                replacement: text,
            });
        }
        trie.push_children(step.base, &key, &mut open);
    }
    // Keys differ, so that their order is one.
    rules.sort_unstable_by(|a, b| {
        let (a, b) = (self::key(&keys, a), self::key(&keys, b));
        (b.len(), a).cmp(&(a.len(), b))
    });
    Ok(Rules { keys, rules })
}

/// One unit of the double array.
#[derive(Debug, Clone, Copy)]
struct Unit(u32);

impl Unit {
    fn has_leaf(self) -> bool {
        self.0 & (1 << 8) != 0
    }

    fn value(self) -> usize {
        (self.0 & 0x7fff_ffff) as usize
    }

    /// The byte that leads here. A leaf has the top bit, so that it equals no byte.
    fn label(self) -> u32 {
        self.0 & 0x8000_00ff
    }

    fn offset(self) -> usize {
        let wide = if self.0 & (1 << 9) == 0 { 0 } else { 8 };
        ((self.0 >> 10) << wide) as usize
    }
}

struct Trie {
    units: Vec<Unit>,
}

/// A step from a node to a child.
struct Step {
    byte: u8,
    depth: usize,
    base: usize,
    value: Option<usize>,
}

impl Trie {
    /// Adds the steps from the node of `key`, whose children are at `base ^ byte`. Only bytes that
    /// continue UTF-8 are tried, because others never occur in a text.
    fn push_children(&self, base: usize, key: &[u8], open: &mut Vec<Step>) {
        let bytes = if continues(key) {
            0x80..=0xbf
        } else {
            0x01..=0xf4
        };
        for byte in bytes {
            let at = base ^ usize::from(byte);
            let Some(unit) = self
                .units
                .get(at)
                .filter(|unit| unit.label() == u32::from(byte))
            else {
                continue;
            };
            let base = at ^ unit.offset();
            let leaf = if unit.has_leaf() {
                self.units.get(base)
            } else {
                None
            };
            let value = leaf.map(|leaf| leaf.value());
            open.push(Step {
                byte,
                depth: key.len(),
                base,
                value,
            });
        }
    }
}

/// Returns whether the bytes end within a character.
fn continues(bytes: &[u8]) -> bool {
    let tail = bytes
        .iter()
        .rev()
        .take_while(|byte| **byte & 0xc0 == 0x80)
        .count();
    let Some(lead) = bytes.len().checked_sub(tail + 1).map(|at| bytes[at]) else {
        return false;
    };
    let length = match lead {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    };
    tail + 1 < length
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn characters_that_are_cut_off_go_on() {
        for (bytes, expected) in [
            (&b""[..], false),
            (b"a", false),
            ("あ".as_bytes(), false),
            (&"あ".as_bytes()[..2], true),
            (&"😀".as_bytes()[..3], true),
            ("😀".as_bytes(), false),
        ] {
            assert_eq!(continues(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn rules_that_are_cut_off_are_refused() {
        // One node without children, and one text.
        let blob = [&4_u32.to_le_bytes()[..], &[0; 4], b"a\0"].concat();
        assert_eq!(rules(&blob).unwrap().iter().count(), 0);
        for length in [3, 4, 7, blob.len() - 1] {
            let reason = rules(&blob[..length]).unwrap_err().to_string();
            assert!(
                reason.contains("cut off") || reason.contains("size"),
                "{reason}"
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(blob in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = rules(&blob);
            let mut sized = ((blob.len() as u32) & !3).to_le_bytes().to_vec();
            sized.extend_from_slice(&blob);
            let _ = rules(&sized);
        }
    }
}
