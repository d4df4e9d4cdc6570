//! What a model's normalization rules do, in the two kinds that the tokenizers library can be told
//! of: one character becomes a text, and several characters become one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use unicode_normalization_alignments::UnicodeNormalization;

use crate::error::{Error, Result};
use crate::tokenizer::charsmap;

/// The rules of one model.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// Rules of one character.
    pub(super) single: BTreeMap<char, String>,
    /// Rules of several characters, none of which has a rule of its own. The file also has each of
    /// them with characters that become these.
    pub(super) several: BTreeMap<Vec<char>, String>,
    /// The characters that begin a rule of several.
    pub(super) heads: BTreeSet<char>,
    /// The characters that follow in a rule of several.
    pub(super) tails: BTreeSet<char>,
}

impl Rules {
    /// Reads the rules of a charsmap, which may be empty.
    ///
    /// # Errors
    /// The charsmap is broken, or its rules of several characters are not those of `several` with
    /// all the characters that become theirs.
    pub(super) fn read(packed: &[u8]) -> Result<Self> {
        let mut rules = Self::default();
        let mut all: Vec<(Vec<char>, String)> = Vec::new();
        if !packed.is_empty() {
            for (key, replacement) in charsmap::rules(packed)?.iter() {
                let (key, replacement): (Vec<char>, _) =
                    (key.chars().collect(), replacement.into());
                if let [c] = key[..] {
                    rules.single.insert(c, replacement);
                } else {
                    all.push((key, replacement));
                }
            }
        }
        for (key, _) in &all {
            rules.heads.extend(key.first());
            rules.tails.extend(&key[1..]);
        }
        let mut images: HashMap<Vec<char>, usize> = HashMap::new();
        for (key, text) in &all {
            if key.iter().all(|c| !rules.single.contains_key(c)) {
                rules.several.insert(key.clone(), text.clone());
            }
        }
        for (key, text) in &all {
            let image = key
                .iter()
                .map(|c| rules.image(*c))
                .collect::<Option<Vec<_>>>();
            match image
                .as_ref()
                .map(|image| (image, rules.several.get(image)))
            {
                Some((image, Some(joined))) if joined == text => {
                    *images.entry(image.clone()).or_default() += 1;
                }
                // Its characters become this one by one.
                Some((image, None)) if text.chars().eq(image.iter().copied()) => {}
                _ => return Err(uneven(key)),
            }
        }
        let heads = rules.sources(&rules.heads);
        let tails = rules.sources(&rules.tails);
        for key in rules.several.keys() {
            let of = |counts: &HashMap<char, usize>, c: &char| counts.get(c).copied().unwrap_or(0);
            let tails: usize = key[1..].iter().map(|c| of(&tails, c)).product();
            if images[key] != of(&heads, &key[0]) * tails {
                return Err(uneven(key));
            }
        }
        Ok(rules)
    }

    pub(super) fn are_none(&self) -> bool {
        self.single.is_empty() && self.several.is_empty()
    }

    /// The one character that a character becomes.
    fn image(&self, c: char) -> Option<char> {
        let Some(text) = self.single.get(&c) else {
            return Some(c);
        };
        let mut chars = text.chars();
        chars.next().filter(|_| chars.next().is_none())
    }

    /// How many of `among` become each character.
    fn sources(&self, among: &BTreeSet<char>) -> HashMap<char, usize> {
        let mut counts = HashMap::new();
        for image in among.iter().filter_map(|c| self.image(*c)) {
            *counts.entry(image).or_default() += 1;
        }
        counts
    }

    /// Whether the rules would change a text that must stay as it is.
    pub(super) fn change(&self, text: &str) -> bool {
        let chars: Vec<char> = text.chars().collect();
        chars.iter().any(|c| self.single.contains_key(c))
            || chars
                .windows(2)
                .any(|pair| self.heads.contains(&pair[0]) && self.tails.contains(&pair[1]))
            || composed(text.chars()) != text
    }
}

/// Unicode's canonical composition, by the tables that the tokenizers library has.
pub(super) fn composed(text: impl Iterator<Item = char>) -> String {
    text.nfc().map(|(c, _)| c).collect()
}

fn uneven(key: &[char]) -> Error {
    let key: String = key.iter().flat_map(|c| c.escape_unicode()).collect();
    Error::inexpressible(format!(
        "its rule for {key} does not hold for all characters that become these"
    ))
}
