//! Text to ids and back, exactly as SentencePiece does it for unigram models.
//!
//! encode: `normalizer` (text → symbols) → `lattice` (symbols → pieces, over `trie`) → ids. decode:
//! see [`crate::decoder`].

mod charsmap;
mod lattice;
mod load;
mod model;
mod normalizer;
mod table;
mod trie;

use std::sync::Arc;

use crate::decoder::{Decoder, Detokenizer};
use crate::error::Result;
use lattice::{Best, Lattice, Span};
pub(crate) use normalizer::SPACE;
use normalizer::{Normalizer, Symbol};

/// A SentencePiece unigram model. Text never yields a control id: `</s>` typed by a user is
/// ordinary text.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    normalizer: Normalizer,
    lattice: Lattice,
    /// Ids of the 256 byte pieces; empty without byte fallback.
    bytes: Vec<u32>,
    vocabulary: Arc<Vocabulary>,
    digest: String,
}

/// What decoding needs.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    pub(crate) pieces: Vec<Piece>,
    /// What the unknown piece is written as.
    pub(crate) unk_surface: String,
    /// Whether a space at the beginning of a text is the normalizer's own.
    pub(crate) strip_space: bool,
    /// Whether the normalizer removed further spaces at the beginning, so that all of them go.
    pub(crate) strip_all_spaces: bool,
    unk: u32,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
}

/// An entry of the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) role: Role,
}

/// What an entry of the vocabulary becomes in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Itself, with [`SPACE`] as a space.
    Text,
    /// Nothing.
    Control,
    /// The unknown surface.
    Unknown,
    /// A byte of a character.
    Byte(u8),
}

/// Memory that encoding uses again and again: one for each thread.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    symbols: Vec<Symbol>,
    origins: Vec<u32>,
    best: Vec<Best>,
    path: Vec<Span>,
}

impl Tokenizer {
    /// Reads a SentencePiece `.model` file. Fails where it is none, or not a unigram model, or one
    /// that cannot be followed exactly.
    pub fn from_bytes(model: &[u8]) -> Result<Self> {
        load::tokenizer(model)
    }

    /// Returns the SHA-256 of the model's file: 64 lower-case hex digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns a text's ids: exactly SentencePiece's, without a beginning or an end of sequence.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut Scratch::default(), &mut ids);
        ids
    }

    /// Appends a text's ids. Allocates only where the scratch or the list must grow. The text must
    /// be shorter than 4 GiB.
    pub fn encode_into(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        scratch.symbols.clear();
        self.normalizer
            .normalize(text, &mut scratch.symbols, &mut ());
        self.lattice
            .best_path(&scratch.symbols, &mut scratch.best, &mut scratch.path);
        self.ids(scratch, ids, |_, _| {});
    }

    /// Replaces both lists by a text's ids and, for each, the byte of the text at which it ends.
    /// The bytes of one character all end with the character.
    pub fn encode_with_ends(
        &self,
        text: &str,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
        ends: &mut Vec<u32>,
    ) {
        scratch.symbols.clear();
        let mut origins = std::mem::take(&mut scratch.origins);
        origins.clear();
        self.normalizer
            .normalize(text, &mut scratch.symbols, &mut origins);
        self.lattice
            .best_path(&scratch.symbols, &mut scratch.best, &mut scratch.path);
        ids.clear();
        ends.clear();
        self.ids(scratch, ids, |count, span| {
            // Count 0: the span was merged into the unknown piece before it.
            ends.truncate(ends.len() - usize::from(count == 0));
            ends.resize(ends.len() + count.max(1), origins[span.end as usize]);
        });
        scratch.origins = origins;
    }

    /// Appends the ids of the scratch's path, and tells how many each span became.
    #[inline]
    fn ids(&self, scratch: &Scratch, ids: &mut Vec<u32>, mut each: impl FnMut(usize, &Span)) {
        ids.reserve(scratch.path.len());
        let mut after_unknown = false;
        for span in scratch.path.iter().rev() {
            let before = ids.len();
            if span.id != self.lattice.unk {
                ids.push(span.id);
                after_unknown = false;
            } else if self.bytes.is_empty() {
                // A run of unknown characters is one unknown piece.
                if !after_unknown {
                    ids.push(span.id);
                }
                after_unknown = true;
            } else {
                for symbol in &scratch.symbols[span.start as usize..span.end as usize] {
                    let mut utf8 = [0; 4];
                    let utf8 = symbol.c.encode_utf8(&mut utf8).bytes();
                    ids.extend(utf8.map(|byte| self.bytes[usize::from(byte)]));
                }
            }
            each(ids.len() - before, span);
        }
    }

    /// Returns the text of ids: exactly SentencePiece's. Ids outside the vocabulary are left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut detokenizer = Detokenizer::default();
        let mut text = String::new();
        for id in ids {
            detokenizer.push(&self.vocabulary, *id, &mut text);
        }
        detokenizer.finish(&mut text);
        text
    }

    /// Returns a decoder for ids that come one by one, with `<NL>` written as a newline.
    pub fn decoder(&self) -> Decoder {
        Decoder::new(Arc::clone(&self.vocabulary))
    }

    /// Returns a text as the model sees it before it is cut into pieces.
    pub fn normalize(&self, text: &str) -> String {
        let mut symbols = Vec::new();
        self.normalizer.normalize(text, &mut symbols, &mut ());
        symbols.into_iter().map(|symbol| symbol.c).collect()
    }

    /// The number of ids.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.pieces.len()
    }

    /// Returns an id's piece, empty for an id outside the vocabulary.
    pub fn piece(&self, id: u32) -> &str {
        self.vocabulary
            .pieces
            .get(id as usize)
            .map_or("", |piece| &piece.text)
    }

    /// Returns whether an id is a control piece, which has no text.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocabulary
            .pieces
            .get(id as usize)
            .is_some_and(|piece| piece.role == Role::Control)
    }

    /// The id of the end of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.vocabulary.eos
    }

    /// The id of the beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.vocabulary.bos
    }

    /// The id of padding.
    pub fn pad(&self) -> Option<u32> {
        self.vocabulary.pad
    }

    /// The id of what is in no piece: every SentencePiece model has one.
    pub fn unk(&self) -> Option<u32> {
        Some(self.vocabulary.unk)
    }
}
