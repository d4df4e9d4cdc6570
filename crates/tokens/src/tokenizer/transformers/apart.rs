//! Keeps a text that spells a control piece, an unknown piece or a byte from becoming its id.
//!
//! The tokenizers library finds every piece in a text. So the text is cut within such a spelling,
//! at two characters that are beside each other in no piece that text may become.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::{Value, json};

use super::pattern;
use crate::error::{Error, Result};

/// What text may become, and whether unknown characters become bytes.
pub(super) struct Pieces<'a> {
    pub(super) of_text: Vec<&'a str>,
    pub(super) byte_fallback: bool,
}

impl Pieces<'_> {
    /// Returns the step that cuts spellings of the other pieces, which must not be empty.
    ///
    /// # Errors
    /// A piece has no place where it can be cut.
    pub(super) fn cut<'a>(&self, others: impl Iterator<Item = &'a str>) -> Result<Value> {
        let mut pairs: HashSet<(char, char)> = HashSet::new();
        let mut known: HashSet<char> = HashSet::new();
        for piece in &self.of_text {
            pairs.extend(piece.chars().zip(piece.chars().skip(1)));
            let mut chars = piece.chars();
            if let (Some(c), None) = (chars.next(), chars.next()) {
                known.insert(c);
            }
        }
        // A run of unknown characters is one id, so that it must not be cut.
        let whole = |a, b| !self.byte_fallback && !known.contains(&a) && !known.contains(&b);
        let mut cuts: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for piece in others {
            let ends = piece.char_indices().zip(piece.chars().skip(1));
            let mut places =
                ends.filter(|((_, a), b)| !pairs.contains(&(*a, *b)) && !whole(*a, *b));
            let Some(((at, a), _)) = places.next() else {
                return Err(Error::inexpressible(format!(
                    "a text that spells its piece {piece:?} would become that piece"
                )));
            };
            let (before, behind) = piece.split_at(at + a.len_utf8());
            cuts.entry(before).or_default().insert(behind);
        }
        let patterns: Vec<String> = cuts
            .into_iter()
            .map(|(before, behind)| {
                let behind: Vec<String> = behind.into_iter().map(pattern::literal).collect();
                format!("{}(?={})", pattern::literal(before), pattern::any(&behind))
            })
            .collect();
        Ok(json!({
            "type": "Split",
            "pattern": { "Regex": pattern::any(&patterns) },
            "behavior": "MergedWithPrevious",
            "invert": false,
        }))
    }
}
