//! Text to ids and back, with exactly SentencePiece's results for unigram models.
//!
//! Encoding: `normalizer` (text → symbols) → `lattice` (symbols → pieces, over `trie`) → ids.
//! Decoding is in `decoder`.

mod beside;
mod charsmap;
mod decoder;
mod lattice;
mod load;
mod model;
mod normalizer;
mod table;
pub mod transformers;
mod trie;
pub(crate) mod vocabulary;

use std::path::Path;
use std::sync::Arc;

use togi_common::Digest;

pub use self::beside::BESIDE;
pub use self::decoder::Decoder;
use self::decoder::Detokenizer;
use self::lattice::{Best, Span};
use self::load::Model;
use self::normalizer::Symbol;
use self::vocabulary::Role;
use crate::error::{Error, Result};

/// A SentencePiece unigram model. Text never yields a control id: `</s>` typed by a user is
/// ordinary text.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    model: Model,
    digest: String,
}

/// Buffers that encoding reuses; each thread has its own.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    symbols: Vec<Symbol>,
    origins: Vec<u32>,
    best: Vec<Best>,
    path: Vec<Span>,
}

impl Tokenizer {
    /// Reads a SentencePiece `.model` file. Fails if it is not a unigram model, or needs a feature
    /// that is not implemented.
    pub fn from_bytes(file: &[u8]) -> Result<Self> {
        Ok(Self {
            model: Model::read(file)?,
            digest: Digest::of(file).to_string(),
        })
    }

    /// Checks the files [`BESIDE`] this model together, each by its name and bytes.
    ///
    /// # Errors
    /// A file cannot be parsed, or it would make other ids or another end than the model alone: the
    /// text names the file, the field and the token.
    pub fn check_beside(&self, files: &[(&str, &[u8])]) -> Result<()> {
        beside::check(&self.model.vocabulary, files)
    }

    /// Checks every file [`BESIDE`] this model that a folder has.
    ///
    /// # Errors
    /// As [`Tokenizer::check_beside`]; a file that is there cannot be read.
    pub fn check_folder(&self, folder: &Path) -> Result<()> {
        let mut found = Vec::new();
        for name in BESIDE {
            match togi_common::file::read(&folder.join(name)) {
                Ok(bytes) => found.push((name, bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::beside(name, error.to_string())),
            }
        }
        let files: Vec<_> = found
            .iter()
            .map(|(name, bytes)| (*name, &bytes[..]))
            .collect();
        self.check_beside(&files)
    }

    /// Returns the SHA-256 of the model's file as 64 lower-case hex digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns a text's ids, without a beginning or an end of sequence.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut Scratch::default(), &mut ids);
        ids
    }

    /// Appends a text's ids. Allocates only if `scratch` or `ids` must grow. The text must be
    /// shorter than 4 GiB.
    pub fn encode_into(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        scratch.symbols.clear();
        self.model
            .normalizer
            .normalize(text, &mut scratch.symbols, &mut ());
        self.model
            .lattice
            .best_path(&scratch.symbols, &mut scratch.best, &mut scratch.path);
        self.ids(scratch, ids, |_, _| {});
    }

    /// Replaces `ids` by a text's ids, and `ends` by the byte of the text at which each id ends.
    /// If a character became several byte pieces, all of them end at the end of the character.
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
        self.model
            .normalizer
            .normalize(text, &mut scratch.symbols, &mut origins);
        self.model
            .lattice
            .best_path(&scratch.symbols, &mut scratch.best, &mut scratch.path);
        ids.clear();
        ends.clear();
        self.ids(scratch, ids, |count, span| {
            // With count 0 the span was merged into the unknown piece before it.
            ends.truncate(ends.len() - usize::from(count == 0));
            ends.resize(ends.len() + count.max(1), origins[span.end as usize]);
        });
        scratch.origins = origins;
    }

    /// Appends the ids of the scratch's path, and calls `each` with the number of ids of each span.
    #[inline]
    fn ids(&self, scratch: &Scratch, ids: &mut Vec<u32>, mut each: impl FnMut(usize, &Span)) {
        ids.reserve(scratch.path.len());
        let mut after_unknown = false;
        for span in scratch.path.iter().rev() {
            let before = ids.len();
            if span.id != self.model.lattice.unk {
                ids.push(span.id);
                after_unknown = false;
            } else if self.model.bytes.is_empty() {
                // A run of unknown characters is one unknown piece.
                if !after_unknown {
                    ids.push(span.id);
                }
                after_unknown = true;
            } else {
                for symbol in &scratch.symbols[span.start as usize..span.end as usize] {
                    let mut utf8 = [0; 4];
                    let utf8 = symbol.c.encode_utf8(&mut utf8).bytes();
                    ids.extend(utf8.map(|byte| self.model.bytes[usize::from(byte)]));
                }
            }
            each(ids.len() - before, span);
        }
    }

    /// Returns the text of ids. Ids outside the vocabulary are left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut detokenizer = Detokenizer::default();
        let mut text = String::new();
        for id in ids {
            detokenizer.push(&self.model.vocabulary, *id, &mut text);
        }
        detokenizer.finish(&mut text);
        text
    }

    /// Returns a decoder for ids that arrive one by one; it writes `<NL>` as a newline.
    pub fn decoder(&self) -> Decoder {
        Decoder::new(Arc::clone(&self.model.vocabulary))
    }

    /// Returns a text after normalization, before it is cut into pieces.
    pub fn normalize(&self, text: &str) -> String {
        let mut symbols = Vec::new();
        self.model.normalizer.normalize(text, &mut symbols, &mut ());
        symbols.into_iter().map(|symbol| symbol.c).collect()
    }

    /// The number of ids.
    pub fn vocab_size(&self) -> usize {
        self.model.vocabulary.pieces.len()
    }

    /// Returns an id's piece; it is empty for an id outside the vocabulary.
    pub fn piece(&self, id: u32) -> &str {
        self.model
            .vocabulary
            .pieces
            .get(id as usize)
            .map_or("", |piece| &piece.text)
    }

    /// Returns whether an id is a control piece, which has no text.
    pub fn is_control(&self, id: u32) -> bool {
        self.model
            .vocabulary
            .pieces
            .get(id as usize)
            .is_some_and(|piece| piece.role == Role::Control)
    }

    /// The id of the end of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.model.vocabulary.eos
    }

    /// The id of the beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.model.vocabulary.bos
    }

    /// The id of padding.
    pub fn pad(&self) -> Option<u32> {
        self.model.vocabulary.pad
    }

    /// The id of text that is in no piece. Every SentencePiece model has one.
    pub fn unk(&self) -> Option<u32> {
        Some(self.model.vocabulary.unk)
    }
}
