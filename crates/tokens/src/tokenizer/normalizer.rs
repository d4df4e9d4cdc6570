//! Text to symbols: SentencePiece's normalization in one pass, which also looks up each character's
//! code in the vocabulary.
//!
//! Most characters stay as they are and cost one table look-up. Only characters that begin a rule
//! (a charsmap key or a user-defined symbol) take more.

use std::ops::Range;

use super::charsmap;
use super::model::{NormalizerSpec, TrainerSpec};
use super::table::CharTable;
use super::vocabulary::SPACE;
use crate::error::Result;

/// A character after normalization, and its code in the vocabulary; code 0 is in no piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Symbol {
    pub(crate) code: u32,
    pub(crate) c: char,
}

/// The bits of a character table's entry that are the code; the others are the flags below.
const CODE: u32 = (1 << 24) - 1;
/// The character is the key of a rule.
const ALONE: u32 = 1 << 24;
/// The character begins a longer key.
const BEGINS: u32 = 1 << 25;
/// The character is the second one of a key.
const SECOND: u32 = 1 << 26;
/// The character is a space.
const BLANK: u32 = 1 << 27;

/// Records where each symbol came from.
pub(crate) trait Origins {
    /// Records the byte of the text at which the next symbol starts; after the last symbol, the
    /// byte up to which the text was read.
    fn push(&mut self, byte: usize);
    /// Removes the last symbol, and returns the byte at which it started.
    fn pop(&mut self) -> usize;
}

/// Records nothing.
impl Origins for () {
    #[inline]
    fn push(&mut self, _: usize) {}
    #[inline]
    fn pop(&mut self) -> usize {
        0
    }
}

impl Origins for Vec<u32> {
    #[inline]
    fn push(&mut self, byte: usize) {
        self.push(byte as u32);
    }
    #[inline]
    fn pop(&mut self) -> usize {
        self.pop().unwrap_or_default() as usize
    }
}

/// A rule as it is applied: its key, cut after the first character, and the key's replacement. A
/// model may have more than 10^5, so that both are parts of shared buffers.
#[derive(Debug, Clone)]
struct Replacement {
    first: char,
    rest: Part,
    symbols: Part,
}

/// A part of a buffer.
#[derive(Debug, Clone, Copy)]
struct Part {
    from: u32,
    to: u32,
}

impl Part {
    /// The part of a buffer from one length to another. The charsmap and the model's file have less
    /// than 4 GiB.
    fn between(from: usize, to: usize) -> Self {
        Self {
            from: from as u32,
            to: to as u32,
        }
    }

    fn range(self) -> Range<usize> {
        self.from as usize..self.to as usize
    }
}

/// SentencePiece's normalizer for one model.
#[derive(Debug, Clone)]
pub(crate) struct Normalizer {
    table: CharTable,
    /// Character to 1 + the index of its first rule.
    begins: CharTable,
    /// Sorted by first character; then user-defined symbols before the charsmap's keys; then
    /// longer keys first.
    rules: Vec<Replacement>,
    /// Of all rules the rests of the keys,
    rests: String,
    /// and the replacements.
    replacements: Vec<Symbol>,
    space: Symbol,
    dummy_prefix: bool,
    remove_extra: bool,
    suffix: bool,
}

impl Normalizer {
    /// Combines the model's rules, its user-defined symbols and the vocabulary's codes.
    pub(crate) fn new(
        spec: &NormalizerSpec,
        trainer: &TrainerSpec,
        user_defined: &[&str],
        codes: CharTable,
    ) -> Result<Self> {
        let mut user = user_defined.to_vec();
        user.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let user = user.into_iter().map(|key| (key, key));
        let mapped = if spec.charsmap.is_empty() {
            None
        } else {
            Some(charsmap::rules(&spec.charsmap)?)
        };
        let mapped = mapped.iter().flat_map(charsmap::Rules::iter);

        let escape = spec.escape_whitespaces.unwrap_or(true);
        let space = if escape { SPACE } else { ' ' };
        let space = Symbol {
            code: codes.get(space),
            c: space,
        };
        let mut table = codes;
        let mut rules: Vec<Replacement> = Vec::new();
        let (mut rests, mut replacements) = (String::new(), Vec::new());
        for (key, replacement) in user.chain(mapped) {
            let mut rest = key.chars();
            let Some(first) = rest.next() else { continue };
            let rest = rest.as_str();
            *table.entry(first) |= if rest.is_empty() { ALONE } else { BEGINS };
            if let Some(second) = rest.chars().next() {
                *table.entry(second) |= SECOND;
            }
            let (rest_from, symbols_from) = (rests.len(), replacements.len());
            rests.push_str(rest);
            replacements.extend(replacement.chars().map(|c| Symbol {
                code: table.get(c) & CODE,
                c,
            }));
            rules.push(Replacement {
                first,
                rest: Part::between(rest_from, rests.len()),
                symbols: Part::between(symbols_from, replacements.len()),
            });
        }
        *table.entry(' ') |= BLANK;
        // The sort is stable: within one first character the order above stays.
        rules.sort_by_key(|rule| rule.first);
        rules.shrink_to_fit();
        let mut begins = CharTable::new();
        for (at, rule) in rules.iter().enumerate().rev() {
            *begins.entry(rule.first) = at as u32 + 1;
        }
        Ok(Self {
            table,
            begins,
            rules,
            rests,
            replacements,
            space,
            dummy_prefix: spec.add_dummy_prefix.unwrap_or(true),
            remove_extra: spec.remove_extra_whitespaces.unwrap_or(true),
            suffix: trainer.treat_whitespace_as_suffix,
        })
    }

    /// Appends a text's symbols and their origins; both lists must be empty.
    pub(crate) fn normalize(
        &self,
        text: &str,
        symbols: &mut Vec<Symbol>,
        origins: &mut impl Origins,
    ) {
        let start = if self.remove_extra {
            self.blank_prefix(text)
        } else {
            0
        };
        if start == text.len() {
            return;
        }
        let mut out = Output {
            symbols,
            origins,
            space: self.space,
        };
        if self.dummy_prefix && !self.suffix {
            out.push(self.space, start);
        }
        let mut consumed = self.body(text, start, &mut out);
        if self.remove_extra {
            while out
                .symbols
                .last()
                .is_some_and(|symbol| symbol.c == self.space.c)
            {
                out.symbols.pop();
                consumed = out.origins.pop();
            }
        }
        if self.dummy_prefix && self.suffix {
            out.push(self.space, consumed);
        }
        out.origins.push(consumed);
    }

    /// Normalizes the text from byte `start`, and returns the text's length.
    fn body(&self, text: &str, start: usize, out: &mut Output<'_, impl Origins>) -> usize {
        let mut after_space = self.remove_extra;
        let mut at = start;
        let mut chars = text[start..].chars();
        let look_up = |c: char| (c, self.table.get(c));
        let mut next = chars.next().map(look_up);
        while let Some((c, entry)) = next {
            next = chars.next().map(look_up);
            let code = entry & CODE;
            if entry & (ALONE | BEGINS | BLANK) == 0 {
                out.push(Symbol { code, c }, at);
                after_space = false;
                at += c.len_utf8();
                continue;
            }
            let longer = entry & BEGINS != 0 && next.is_some_and(|(_, entry)| entry & SECOND != 0);
            let rule = if longer || entry & ALONE != 0 {
                self.rule(c, &text[at..])
            } else {
                None
            };
            let Some(rule) = rule else {
                if entry & BLANK == 0 {
                    out.push(Symbol { code, c }, at);
                    after_space = false;
                } else if !after_space {
                    out.push(self.space, at);
                    after_space = self.remove_extra;
                }
                at += c.len_utf8();
                continue;
            };
            let symbols = &self.replacements[rule.symbols.range()];
            after_space = out.replace(symbols, at, after_space) && self.remove_extra;
            let rest = rule.rest.range().len();
            at += c.len_utf8() + rest;
            if rest > 0 {
                chars = text[at..].chars();
                next = chars.next().map(look_up);
            }
        }
        at
    }

    /// The length of the spaces at the beginning, including text that a rule turns into one space.
    fn blank_prefix(&self, text: &str) -> usize {
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let length = match self.rule(c, rest) {
                Some(rule) => {
                    let symbols = &self.replacements[rule.symbols.range()];
                    if !matches!(symbols, [Symbol { c: ' ', .. }]) {
                        break;
                    }
                    c.len_utf8() + rule.rest.range().len()
                }
                None if c == ' ' => 1,
                None => break,
            };
            rest = &rest[length..];
        }
        text.len() - rest.len()
    }

    /// The rule that applies to `rest`, which begins with `first`.
    #[inline]
    fn rule(&self, first: char, rest: &str) -> Option<&Replacement> {
        let from = self.begins.get(first).checked_sub(1)? as usize;
        let tail = &rest[first.len_utf8()..];
        let own = self.rules[from..]
            .iter()
            .take_while(|rule| rule.first == first);
        own.into_iter()
            .find(|rule| tail.starts_with(&self.rests[rule.rest.range()]))
    }
}

/// Collects symbols and their origins.
struct Output<'a, O> {
    symbols: &'a mut Vec<Symbol>,
    origins: &'a mut O,
    space: Symbol,
}

impl<O: Origins> Output<'_, O> {
    #[inline]
    fn push(&mut self, symbol: Symbol, origin: usize) {
        self.symbols.push(symbol);
        self.origins.push(origin);
    }

    /// Writes a rule's replacement and returns whether the output ends with a space. After a space
    /// the spaces at the beginning of the replacement are dropped.
    fn replace(&mut self, mut symbols: &[Symbol], origin: usize, after_space: bool) -> bool {
        if after_space {
            while let [Symbol { c: ' ', .. }, rest @ ..] = symbols {
                symbols = rest;
            }
        }
        for symbol in symbols {
            let symbol = if symbol.c == ' ' { self.space } else { *symbol };
            self.push(symbol, origin);
        }
        symbols.last().map_or(after_space, |last| last.c == ' ')
    }
}
