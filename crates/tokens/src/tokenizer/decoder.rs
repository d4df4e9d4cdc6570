//! Turns ids into text one by one. Each piece of text is whole UTF-8, is final, and has newlines
//! in place of `<NL>`.

use std::sync::Arc;

use crate::prompt::NEWLINE;
use crate::tokenizer::vocabulary::{Role, SPACE, Vocabulary};

/// Decodes ids as they arrive. The concatenated output is [`crate::Tokenizer::decode`] of all ids
/// with a newline for each `<NL>`, even if pieces or bytes split a character or an `<NL>`.
#[derive(Debug, Clone)]
pub struct Decoder {
    vocabulary: Arc<Vocabulary>,
    detokenizer: Detokenizer,
    newlines: Newlines,
}

impl Decoder {
    pub(crate) fn new(vocabulary: Arc<Vocabulary>) -> Self {
        Self {
            vocabulary,
            detokenizer: Detokenizer::default(),
            newlines: Newlines::default(),
        }
    }

    /// Takes the next id and returns the text that is now final, which may be empty. An id outside
    /// the vocabulary has no text.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.detokenizer.push(&self.vocabulary, id, &mut text);
        self.newlines.push(&text)
    }

    /// Returns the text that was held back, and resets the decoder.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        std::mem::take(&mut self.detokenizer).finish(&mut text);
        let mut given = self.newlines.push(&text);
        given.push_str(self.newlines.finish());
        given
    }
}

/// SentencePiece's decoding as a state machine that never looks ahead.
#[derive(Debug, Clone, Default)]
pub(crate) struct Detokenizer {
    /// Bytes that may still become a character; at most three.
    bytes: Vec<u8>,
    /// Some text was returned.
    started: bool,
    /// A space at the beginning was dropped.
    dropped_space: bool,
    /// Spaces are no longer dropped.
    begun: bool,
}

impl Detokenizer {
    /// Appends the text that an id adds.
    pub(crate) fn push(&mut self, vocabulary: &Vocabulary, id: u32, text: &mut String) {
        let before = text.len();
        let Some(piece) = vocabulary.pieces.get(id as usize) else {
            return;
        };
        if let Role::Byte(byte) = piece.role {
            self.bytes.push(byte);
            self.take_characters(text);
            self.started |= text.len() > before;
            return;
        }
        self.give_up_bytes(text);
        self.started |= text.len() > before;
        self.begun |= self.dropped_space || self.started;
        self.dropped_space = false;
        match piece.role {
            Role::Control | Role::Byte(_) => {}
            Role::Unknown => text.push_str(&vocabulary.unk_surface),
            Role::Text => {
                let mut piece = piece.text.as_str();
                if !self.begun && vocabulary.strip_space {
                    let stripped = piece.strip_prefix(SPACE);
                    self.dropped_space = stripped.is_some() && !vocabulary.strip_all_spaces;
                    piece = stripped.unwrap_or(piece);
                }
                text.extend(piece.chars().map(|c| if c == SPACE { ' ' } else { c }));
            }
        }
        self.started |= text.len() > before;
    }

    /// Appends U+FFFD for the bytes that are left.
    pub(crate) fn finish(mut self, text: &mut String) {
        self.give_up_bytes(text);
    }

    /// Moves whole characters from the bytes to the text. A byte that cannot begin a character
    /// becomes U+FFFD.
    fn take_characters(&mut self, text: &mut String) {
        while !self.bytes.is_empty() {
            match std::str::from_utf8(&self.bytes) {
                Ok(characters) => {
                    text.push_str(characters);
                    self.bytes.clear();
                }
                Err(error) if error.valid_up_to() > 0 => {
                    let valid = self.bytes.drain(..error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid.as_slice()).unwrap_or_default());
                }
                // These bytes may be the beginning of a character.
                Err(error) if error.error_len().is_none() => return,
                Err(_) => {
                    self.bytes.remove(0);
                    text.push(char::REPLACEMENT_CHARACTER);
                }
            }
        }
    }

    /// Writes U+FFFD for each byte that is left.
    fn give_up_bytes(&mut self, text: &mut String) {
        while !self.bytes.is_empty() {
            self.bytes.remove(0);
            text.push(char::REPLACEMENT_CHARACTER);
            self.take_characters(text);
        }
    }
}

/// Replaces `<NL>` by a newline, and holds back text that may be the beginning of `<NL>`.
#[derive(Debug, Clone, Default)]
struct Newlines {
    /// Bytes of `<NL>` that were read; fewer than all.
    held: usize,
}

impl Newlines {
    fn push(&mut self, text: &str) -> String {
        let mut given = String::with_capacity(text.len());
        for c in text.chars() {
            // Only the first character of `<NL>` can begin it, so that a mismatch releases all held
            // bytes.
            if !NEWLINE[self.held..].starts_with(c) {
                given.push_str(self.finish());
            }
            if !NEWLINE[self.held..].starts_with(c) {
                given.push(c);
                continue;
            }
            self.held += c.len_utf8();
            if self.held == NEWLINE.len() {
                self.held = 0;
                given.push('\n');
            }
        }
        given
    }

    fn finish(&mut self) -> &'static str {
        &NEWLINE[..std::mem::take(&mut self.held)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn newlines_are_held_back_until_they_are_certain() {
        let mut newlines = Newlines::default();
        let given: Vec<String> = ["a<", "N", "L>b<N", "<NL", "><", "<NLx"]
            .map(|t| newlines.push(t))
            .into();
        assert_eq!(given, ["a", "", "\nb", "<N", "\n", "<<NLx"]);
        assert_eq!(newlines.finish(), "");
        newlines.push("<NL");
        assert_eq!(newlines.finish(), "<NL");
    }

    proptest! {
        #[test]
        fn newlines_in_pieces_are_newlines_at_once(parts in proptest::collection::vec("[<NL>aあ]{0,4}", 0..12)) {
            let mut newlines = Newlines::default();
            let mut given: String = parts.iter().map(|part| newlines.push(part)).collect();
            given.push_str(newlines.finish());
            prop_assert_eq!(given, parts.concat().replace(NEWLINE, "\n"));
        }
    }
}
