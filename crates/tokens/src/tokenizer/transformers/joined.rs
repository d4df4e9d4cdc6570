//! Rules of several characters as steps: each as a replacement, or by Unicode's composition where
//! they are too many for that.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::marks::Marks;
use super::pattern;
use super::rules::{Rules, composed};
use super::step::replace;
use crate::error::{Error, Result};

/// The most rules that have a step of their own.
const MOST_STEPS: usize = 128;

/// Returns the steps, for a text whose rules of one character are applied.
///
/// # Errors
/// The rules are neither few nor those of Unicode's composition.
pub(super) fn steps(rules: &Rules, marks: &Marks) -> Result<Vec<Value>> {
    let mut own: Vec<(&[char], &str)> = Vec::new();
    let mut of_unicode: BTreeSet<&[char]> = BTreeSet::new();
    let few = rules.several.len() <= MOST_STEPS;
    for (key, text) in &rules.several {
        if !few && composed(key.iter().copied()) == *text {
            of_unicode.insert(key);
        } else {
            own.push((key, text));
        }
    }
    if own.len() > MOST_STEPS {
        return Err(Error::inexpressible(format!(
            "{} of its rules for several characters are not Unicode's composition; up to \
             {MOST_STEPS} can be",
            own.len()
        )));
    }
    own.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
    let mut steps: Vec<Value> = own
        .into_iter()
        .map(|(key, text)| {
            let key: String = key.iter().collect();
            let edge = marks.edge;
            replace(pattern::literal(&key), format!("{edge}{text}{edge}"))
        })
        .collect();
    if !of_unicode.is_empty() {
        check(rules, &of_unicode)?;
        steps.push(replace(edges(&of_unicode), marks.edge));
        steps.push(json!({ "type": "NFC" }));
    }
    Ok(steps)
}

/// Checks that composition changes nothing but what is joined.
fn check(rules: &Rules, keys: &BTreeSet<&[char]>) -> Result<()> {
    let refuse = |reason: &str, c: char| {
        let c = c.escape_unicode();
        Err(Error::inexpressible(format!("its rules {reason} {c}")))
    };
    let stable = |c: &char| composed(std::iter::once(*c)).chars().eq([*c]);
    let kept = ('\0'..=char::MAX).filter(|c| !rules.single.contains_key(c));
    if let Some(c) = kept.into_iter().find(|c| !stable(c)) {
        return refuse("keep, unlike Unicode's composition, the character", c);
    }
    if let Some(c) = rules
        .single
        .values()
        .flat_map(|text| text.chars())
        .find(|c| !stable(c))
    {
        return refuse("make, unlike Unicode's composition, the character", c);
    }
    let tails: BTreeSet<char> = keys.iter().flat_map(|key| &key[1..]).copied().collect();
    for key in keys {
        if tails.contains(&key[0]) {
            return refuse("join characters to each other on both sides of", key[0]);
        }
        if key.len() > 2 && !keys.contains(&key[..key.len() - 1]) {
            return refuse("join more characters, but not fewer, behind", key[0]);
        }
    }
    Ok(())
}

/// The places before a combining character that no key ends with. No head is a tail and every
/// beginning of a key is a key, so that a key's last character is joined wherever the text before
/// it is the rest of the key.
fn edges(keys: &BTreeSet<&[char]>) -> String {
    // Last characters by what is before them; then heads by the rest; then the middles that have
    // these in common.
    let mut lasts: BTreeMap<&[char], BTreeSet<char>> = BTreeMap::new();
    for key in keys {
        let (last, before) = (key[key.len() - 1], &key[..key.len() - 1]);
        lasts.entry(before).or_default().insert(last);
    }
    let mut heads: BTreeMap<(BTreeSet<char>, &[char]), BTreeSet<char>> = BTreeMap::new();
    for (before, lasts) in lasts {
        let group = heads.entry((lasts, &before[1..])).or_default();
        group.insert(before[0]);
    }
    type Ends = (BTreeSet<char>, BTreeSet<char>, usize);
    let mut middles: BTreeMap<Ends, BTreeSet<&[char]>> = BTreeMap::new();
    for ((lasts, middle), heads) in heads {
        let group = middles.entry((heads, lasts, middle.len())).or_default();
        group.insert(middle);
    }
    let mut joined = Vec::new();
    for ((heads, lasts, length), middles) in middles {
        let (heads, lasts) = (pattern::class(&heads), pattern::class(&lasts));
        if length == 1 {
            let middle = pattern::class(middles.into_iter().flatten());
            joined.push(format!("(?<={heads}{middle}){lasts}"));
        } else {
            for middle in middles {
                let middle = pattern::literal(&middle.iter().collect::<String>());
                joined.push(format!("(?<={heads}{middle}){lasts}"));
            }
        }
    }
    let tails = pattern::ranges(keys.iter().flat_map(|key| &key[1..]));
    let joined = pattern::any(&joined);
    format!(r"(?!\A)(?=[\p{{M}}{tails}])(?!{joined})")
}
