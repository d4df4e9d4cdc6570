//! A model's normalization as steps of the tokenizers library, with SentencePiece's results.
//!
//! The library's own step for SentencePiece's rules takes a cluster of characters for one where the
//! first of them has a rule, and knows no rules of six bytes or more (half-width kana with a sound
//! mark). So the rules are taken apart:
//!
//! 1. `inner` marks are put behind each character that has a rule of its own, so that it is alone;
//!    these rules are then applied, and the marks go with them.
//! 2. `edge` marks are put before each combining character that no rule joins to the characters
//!    before it; Unicode's composition then does what the rules of several characters do.
//! 3. Spaces are put in order, and the marks removed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::double_array::pack;
use super::joined;
use super::marks::Marks;
use super::pattern;
use super::rules::{Rules, composed};
use super::step::replace;
use crate::error::{Error, Result};
use crate::tokenizer::vocabulary::SPACE;

/// The most user-defined pieces that are taken out of the text while the rules are applied.
const MOST_ALTERED: usize = 64;

/// What normalization depends on.
pub(super) struct Text<'a> {
    pub(super) rules: Rules,
    pub(super) user_defined: Vec<&'a str>,
    pub(super) dummy_prefix: bool,
    pub(super) remove_extra: bool,
    pub(super) escape: bool,
    pub(super) suffix: bool,
}

impl Text<'_> {
    /// Returns the steps.
    ///
    /// # Errors
    /// The rules or the user-defined pieces cannot be expressed.
    pub(super) fn steps(&self) -> Result<Vec<Value>> {
        let mut steps = Vec::new();
        // With spaces kept, the prefix is there even if the rules leave nothing else.
        if !self.remove_extra {
            steps.extend(self.dummy());
        }
        if !self.rules.are_none() {
            self.apply_rules(&mut steps)?;
        }
        if self.remove_extra {
            self.check_spaces()?;
            steps.push(replace(" {2,}", " "));
            steps.push(replace(r"\A | \z", ""));
        }
        if self.escape {
            steps.push(replace(" ", SPACE));
        }
        if self.remove_extra {
            let space = self.space();
            if self.suffix && self.dummy_prefix {
                steps.push(replace(format!("{space}*\\z"), space));
            } else {
                steps.push(replace(format!("{space}+\\z"), ""));
                steps.extend(self.dummy());
            }
        }
        Ok(steps)
    }

    /// The character that a space becomes.
    fn space(&self) -> char {
        if self.escape { SPACE } else { ' ' }
    }

    /// The space that the normalizer adds.
    fn dummy(&self) -> Option<Value> {
        let space = self.space();
        match (self.dummy_prefix, self.suffix) {
            (false, _) => None,
            (true, false) => Some(json!({ "type": "Prepend", "prepend": space })),
            (true, true) => Some(replace(r"\z", space)),
        }
    }

    fn apply_rules(&self, steps: &mut Vec<Value>) -> Result<()> {
        let rules = &self.rules;
        let marks = Marks::choose(rules);
        steps.push(marks.reserve());
        let altered = self.altered(&marks)?;
        for (symbol, mark) in &altered {
            steps.push(replace(pattern::literal(symbol), mark.clone()));
        }
        steps.extend(self.bounds(&marks));
        if !rules.single.is_empty() {
            let any = pattern::class(rules.single.keys());
            steps.push(replace(format!(r"(?<={any})(?!\z)"), marks.inner));
            let packed = BASE64.encode(pack(&single(rules, &marks)));
            steps.push(json!({ "type": "Precompiled", "precompiled_charsmap": packed }));
        }
        steps.extend(joined::steps(rules, &marks)?);
        steps.push(marks.remove());
        for (symbol, mark) in &altered {
            steps.push(replace(pattern::literal(mark), *symbol));
        }
        Ok(())
    }

    /// The user-defined pieces that the rules would change, longest first, each with a text that
    /// they leave alone.
    fn altered(&self, marks: &Marks) -> Result<Vec<(&str, String)>> {
        let changed = |symbol: &&str| self.rules.change(symbol) || marks.are_in(symbol);
        let mut altered: Vec<&str> = self.user_defined.iter().copied().filter(changed).collect();
        altered.sort_by_key(|symbol| Reverse(symbol.len()));
        if altered.len() > MOST_ALTERED {
            return Err(Error::inexpressible(format!(
                "{} user-defined pieces are changed by its rules; up to {MOST_ALTERED} can be",
                altered.len()
            )));
        }
        for symbol in &altered {
            let joined = symbol.starts_with(|c| self.rules.tails.contains(&c));
            let others = self.user_defined.iter().filter(|other| other != &symbol);
            if joined || others.into_iter().any(|other| overlap(symbol, other)) {
                return Err(Error::inexpressible(format!(
                    "the user-defined piece {symbol:?} is changed by its rules and may overlap \
                     with others"
                )));
            }
        }
        let numbered = altered.into_iter().zip(0..);
        Ok(numbered
            .map(|(symbol, at)| (symbol, marks.stand_in(at)))
            .collect())
    }

    /// The step that parts a user-defined piece from a combining character that follows it.
    fn bounds(&self, marks: &Marks) -> Option<Value> {
        let rules = &self.rules;
        let ends = |symbol: &&&str| symbol.ends_with(|c| rules.heads.contains(&c));
        let kept = self.user_defined.iter().filter(ends);
        let patterns: Vec<String> = kept.map(|symbol| pattern::literal(symbol)).collect();
        if patterns.is_empty() {
            return None;
        }
        let tails = pattern::class(&rules.tails);
        let any = pattern::any(&patterns);
        Some(replace(format!("(?<={any})(?={tails})"), marks.edge))
    }

    /// Refuses user-defined pieces whose own spaces would be removed.
    fn check_spaces(&self) -> Result<()> {
        match self
            .user_defined
            .iter()
            .find(|symbol| symbol.contains("  "))
        {
            Some(symbol) => Err(Error::inexpressible(format!(
                "the user-defined piece {symbol:?} has spaces that normalization removes"
            ))),
            None => Ok(()),
        }
    }
}

/// Whether one text may end where the other begins, or be within it.
fn overlap(a: &str, b: &str) -> bool {
    let meets = |a: &str, b: &str| {
        let starts = a.char_indices().map(|(at, _)| &a[at..]);
        starts
            .into_iter()
            .any(|rest| b.starts_with(rest) || rest.starts_with(b))
    };
    meets(a, b) || meets(b, a)
}

/// The rules of one character as the library is given them: without those of marks that stand, and
/// with edges where a rule of several must not join the result.
fn single(rules: &Rules, marks: &Marks) -> BTreeMap<char, String> {
    let kept = rules.single.iter().filter(|(c, _)| !marks.stands(**c));
    let mut single: BTreeMap<char, String> = kept
        .map(|(c, text)| (*c, with_edges(rules, marks.edge, *c, text)))
        .collect();
    single.insert(marks.inner, String::new());
    single
}

fn with_edges(rules: &Rules, edge: char, c: char, text: &str) -> String {
    if text.is_empty() {
        return edge.to_string();
    }
    let alone = text.chars().count() == 1;
    // A character that becomes one that is joined is joined itself, or must not be.
    let parted = |end: Option<char>, joined: &BTreeSet<char>| {
        let joins = end.is_some_and(|end| joined.contains(&end));
        joins && !(alone && joined.contains(&c))
    };
    let mut edged = String::new();
    if parted(text.chars().next(), &rules.tails) {
        edged.push(edge);
    }
    for (at, c) in text.char_indices() {
        // Composition must not join what the rule keeps apart.
        if at > 0 && composed(text.chars()) != text {
            edged.push(edge);
        }
        edged.push(c);
    }
    if parted(text.chars().next_back(), &rules.heads) {
        edged.push(edge);
    }
    edged
}
