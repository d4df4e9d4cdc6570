//! The characters that stand between others while the rules are applied, and are removed again.

use serde_json::Value;

use super::pattern;
use super::rules::Rules;
use super::step::replace;

/// Unassigned characters that are a cluster of their own, as control characters are.
const UNASSIGNED: [char; 4] = ['\u{e0ff0}', '\u{e0ff1}', '\u{e0ff2}', '\u{e0ff3}'];

/// Characters that no text has once [`Marks::reserve`] is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    /// Goes with the rules of one character.
    pub(super) inner: char,
    /// Stands until all rules are applied.
    pub(super) edge: char,
    /// Begins the stand-in of a user-defined piece.
    symbol: char,
    /// What a text's own marks become.
    own: char,
}

impl Marks {
    /// Chooses control characters that the rules delete, if there are three: a text's own then only
    /// part what is on their two sides, as an edge does. Otherwise characters that Unicode has not
    /// assigned; a text's own become another of those.
    pub(super) fn choose(rules: &Rules) -> Self {
        let deleted = rules
            .single
            .iter()
            .filter(|(c, text)| c.is_control() && text.is_empty());
        let deleted: Vec<char> = deleted.map(|(c, _)| *c).collect();
        if let [inner, edge, symbol, ..] = deleted[..] {
            return Self {
                inner,
                edge,
                symbol,
                own: edge,
            };
        }
        let [inner, edge, symbol, own] = UNASSIGNED;
        Self {
            inner,
            edge,
            symbol,
            own,
        }
    }

    /// Whether a text has a mark.
    pub(super) fn are_in(&self, text: &str) -> bool {
        text.contains([self.inner, self.edge, self.symbol])
    }

    /// Makes the marks free.
    pub(super) fn reserve(&self) -> Value {
        let marks = [self.inner, self.edge, self.symbol];
        let marks = marks.iter().filter(|mark| **mark != self.own);
        replace(pattern::class(marks), self.own)
    }

    /// Removes the marks that still stand.
    pub(super) fn remove(&self) -> Value {
        replace(format!("{}+", pattern::class(&[self.edge])), "")
    }

    /// Whether the rules of one character must not know this one.
    pub(super) fn stands(&self, c: char) -> bool {
        c == self.edge || c == self.symbol
    }

    /// The stand-in of a user-defined piece, by its number: a mark and a character for private use.
    pub(super) fn stand_in(&self, number: u8) -> String {
        let private = char::from_u32(0xe000 + u32::from(number));
        [Some(self.symbol), private].into_iter().flatten().collect()
    }
}
