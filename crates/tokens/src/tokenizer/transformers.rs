//! What transformers loads as the tokenizer of a SentencePiece model, with the model's own ids:
//! `tokenizer.json` for the tokenizers library, and the settings beside it.
//!
//! transformers 5 makes its own tokenizer of a `spiece.model`, with other ids. This one holds for
//! its class `PreTrainedTokenizerFast`, which takes `tokenizer.json` as it stands in 4 and in 5.

mod apart;
mod double_array;
mod joined;
mod marks;
mod pattern;
mod rules;
mod settings;
mod step;
mod steps;

use std::collections::HashSet;

use prost::Message;
use serde_json::{Value, json};

use self::apart::Pieces;
use self::rules::Rules;
use self::settings::Roles;
use self::steps::Text;
use super::beside;
use super::load::{Model, user_defined_score};
use super::model::{Kind, ModelProto, NormalizerSpec, PieceProto};
use super::vocabulary::SPACE;
use crate::error::{Error, Result};

/// The most spaces that decoding takes from the beginning of a text.
const MOST_SPACES: usize = 1 << 16;

/// Returns the files that transformers loads for a SentencePiece model, each with its name. Of the
/// files [`super::BESIDE`] a model, given by their names and bytes, the roles of special tokens and
/// the lengths and sides of padding and truncation are taken over.
///
/// # Errors
/// The model cannot be read, a file beside it would change its ids, or it has something that
/// `tokenizer.json` cannot express.
pub fn files(model: &[u8], beside: &[(&str, &[u8])]) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let read = Model::read(model)?;
    let proto = ModelProto::decode(model)
        .map_err(|error| Error::tokenizer(format!("it is no model file ({error})")))?;
    beside::check(&read.vocabulary, beside)?;
    let roles = Roles::read(&read.vocabulary, beside)?;
    let parts = Parts::of(&read, &proto)?;
    let tokenizer = parts.tokenizer()?.to_string().into_bytes();
    let [settings, map] = roles.files();
    Ok(vec![("tokenizer.json", tokenizer), settings, map])
}

/// A model, as the tokenizers library divides it.
struct Parts<'a> {
    read: &'a Model,
    /// The pieces by id, each with its kind.
    pieces: Vec<(Kind, &'a PieceProto)>,
    normalizer: NormalizerSpec,
    suffix: bool,
}

impl<'a> Parts<'a> {
    fn of(read: &'a Model, proto: &'a ModelProto) -> Result<Self> {
        let mut names = HashSet::new();
        let mut pieces = Vec::with_capacity(proto.pieces.len());
        for piece in &proto.pieces {
            // `Model::read` has refused unknown kinds.
            let kind = piece.kind.and_then(|kind| Kind::try_from(kind).ok());
            let kind = kind.unwrap_or(Kind::Normal);
            let reason = if kind == Kind::Unused {
                "is not used, which it has no word for"
            } else if !names.insert(piece.piece.as_str()) {
                "is there twice"
            } else {
                pieces.push((kind, piece));
                continue;
            };
            let text = format!("its piece {:?} {reason}", piece.piece);
            return Err(Error::inexpressible(text));
        }
        Ok(Self {
            read,
            pieces,
            normalizer: proto.normalizer.clone().unwrap_or_default(),
            suffix: proto
                .trainer
                .as_ref()
                .is_some_and(|trainer| trainer.treat_whitespace_as_suffix),
        })
    }

    fn of_kind(&self, kinds: &'static [Kind]) -> impl Iterator<Item = &'a str> + '_ {
        let pieces = self.pieces.iter();
        let pieces = pieces.filter(move |(kind, _)| kinds.contains(kind));
        pieces.map(|(_, piece)| piece.piece.as_str())
    }

    fn byte_fallback(&self) -> bool {
        !self.read.bytes.is_empty()
    }

    fn escapes(&self) -> bool {
        self.normalizer.escape_whitespaces.unwrap_or(true)
    }

    fn tokenizer(&self) -> Result<Value> {
        let text = Text {
            rules: Rules::read(&self.normalizer.charsmap)?,
            user_defined: self.of_kind(&[Kind::UserDefined]).collect(),
            dummy_prefix: self.normalizer.add_dummy_prefix.unwrap_or(true),
            remove_extra: self.normalizer.remove_extra_whitespaces.unwrap_or(true),
            escape: self.escapes(),
            suffix: self.suffix,
        };
        let of_text = Pieces {
            of_text: self.of_kind(&[Kind::Normal, Kind::UserDefined]).collect(),
            byte_fallback: self.byte_fallback(),
        };
        // Where spaces are escaped, no text has one when it is cut.
        let others = self.of_kind(&[Kind::Control, Kind::Unknown, Kind::Byte]);
        let others = others.filter(|piece| !(self.escapes() && piece.contains(' ')));
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.special(),
            "normalizer": { "type": "Sequence", "normalizers": text.steps()? },
            "pre_tokenizer": of_text.cut(others)?,
            "post_processor": self.end(),
            "decoder": { "type": "Sequence", "decoders": self.decoders() },
            "model": {
                "type": "Unigram",
                "unk_id": self.read.vocabulary.unk,
                "vocab": self.scores()?,
                "byte_fallback": self.byte_fallback(),
            },
        }))
    }

    /// The pieces without a text, which decoding may skip. Whether a text may spell them is the
    /// setting `split_special_tokens`.
    fn special(&self) -> Vec<Value> {
        let special = self.pieces.iter().enumerate();
        let special =
            special.filter(|(_, (kind, _))| matches!(kind, Kind::Control | Kind::Unknown));
        let token = |(id, (_, piece)): (usize, &(Kind, &PieceProto))| {
            json!({
                "id": id,
                "content": piece.piece,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": true,
            })
        };
        special.map(token).collect()
    }

    /// The pieces with their scores. The library takes the lowest score of all for that of an
    /// unknown character, and SentencePiece the lowest of ordinary pieces.
    fn scores(&self) -> Result<Vec<(&str, f64)>> {
        let normal = self.pieces.iter().filter(|(kind, _)| *kind == Kind::Normal);
        let lowest = normal.map(|(_, piece)| piece.score).reduce(f32::min);
        let Some(lowest) = lowest else {
            return Err(Error::inexpressible("it has no ordinary piece"));
        };
        let score = |(kind, piece): &(Kind, &'a PieceProto)| {
            let score = match kind {
                Kind::Normal => piece.score,
                Kind::UserDefined => user_defined_score(&piece.piece).max(lowest),
                _ => lowest.max(0.0),
            };
            (piece.piece.as_str(), f64::from(score))
        };
        Ok(self.pieces.iter().map(score).collect())
    }

    /// The end of sequence behind each text, as T5's class adds it.
    fn end(&self) -> Value {
        let Some(id) = self.read.vocabulary.eos else {
            return Value::Null;
        };
        let eos = &self.read.vocabulary.pieces[id as usize].text;
        let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
        let end = json!({ "SpecialToken": { "id": eos, "type_id": 0 } });
        json!({
            "type": "TemplateProcessing",
            "single": [text("A"), end],
            "pair": [text("A"), end, text("B"), end],
            "special_tokens": { eos: { "id": eos, "ids": [id], "tokens": [eos] } },
        })
    }

    fn decoders(&self) -> Vec<Value> {
        let vocabulary = &self.read.vocabulary;
        let space = json!({
            "type": "Replace",
            "pattern": { "String": SPACE },
            "content": " ",
        });
        let mut decoders = vec![space];
        if self.byte_fallback() {
            decoders.push(json!({ "type": "ByteFallback" }));
        }
        decoders.push(json!({ "type": "Fuse" }));
        if vocabulary.strip_space {
            let start = if vocabulary.strip_all_spaces {
                MOST_SPACES
            } else {
                1
            };
            decoders.push(json!({ "type": "Strip", "content": " ", "start": start, "stop": 0 }));
        }
        decoders
    }
}
