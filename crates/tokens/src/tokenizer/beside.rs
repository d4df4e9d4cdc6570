//! Checks what transformers keeps beside a SentencePiece model: added tokens, special tokens and
//! the tokenizer's class. Its versions make other ids of added tokens than each other, so that only
//! those are taken that change nothing; any other is refused by name.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::vocabulary::{Piece, Role, Vocabulary};
use crate::error::{Error, Result};

/// The files that are checked, each if it is there.
pub const BESIDE: [&str; 4] = [
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Classes that take a SentencePiece model's own ids, or the `tokenizer.json` that is checked too.
const CLASSES: [&str; 10] = [
    "T5Tokenizer",
    "T5TokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "GPTNeoXTokenizer",
    "GPTNeoXTokenizerFast",
    "PreTrainedTokenizer",
    "PreTrainedTokenizerFast",
    "SentencePieceBackend",
    "TokenizersBackend",
];
/// Special tokens by their roles. One that the model has not is never made of a text.
const ROLES: [&str; 6] = [
    "bos_token",
    "unk_token",
    "pad_token",
    "cls_token",
    "sep_token",
    "mask_token",
];
/// The special tokens that T5's class adds by itself.
const OF_T5: [&str; 3] = ["<unk>", "<pad>", "</s>"];

/// An entry of `added_tokens_decoder`, or of `added_tokens` of a `tokenizer.json`.
#[derive(Deserialize)]
struct Added {
    content: String,
    #[serde(default)]
    special: bool,
    id: Option<u32>,
}

/// The parts of a `tokenizer.json` that are compared.
#[derive(Deserialize)]
struct Rust {
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Option<RustModel>,
}

#[derive(Deserialize)]
struct RustModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Option<Value>,
}

/// The model's pieces by their texts.
struct Pieces<'a> {
    vocabulary: &'a Vocabulary,
    ids: HashMap<&'a str, u32>,
    /// Special tokens that have a role.
    special: Vec<&'a str>,
    /// The file that is checked.
    file: &'a str,
}

/// Checks the files [`BESIDE`] a model together, each by its name and bytes: which tokens are
/// special stands in one, and their ids in another.
///
/// # Errors
/// A file cannot be parsed, or it would make other ids or another end than the model alone.
pub(super) fn check(vocabulary: &Vocabulary, files: &[(&str, &[u8])]) -> Result<()> {
    let mut settings = Vec::new();
    for (file, bytes) in files {
        if !matches!(*file, "added_tokens.json" | "tokenizer.json") {
            let parsed: Map<String, Value> = parse(file, bytes)?;
            settings.push((*file, parsed));
        }
    }
    let roles = settings.iter().flat_map(|(_, settings)| {
        let roles = ROLES.iter().map(|role| content(settings.get(*role)));
        roles.flatten()
    });
    let of_text = vocabulary.pieces.iter().zip(0..);
    let mut pieces = Pieces {
        vocabulary,
        ids: of_text
            .map(|(piece, id)| (piece.text.as_str(), id))
            .collect(),
        special: roles.chain(OF_T5).collect(),
        file: "",
    };
    for (file, settings) in &settings {
        pieces.file = file;
        pieces.settings(settings)?;
    }
    for (file, bytes) in files {
        pieces.file = file;
        match *file {
            // It does not say which are special; a name that has a role is.
            "added_tokens.json" => {
                let tokens: Map<String, Value> = parse(file, bytes)?;
                for (content, id) in &tokens {
                    let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                    pieces.added(content, id, Kind::of(pieces.has_role(content)))?;
                }
            }
            "tokenizer.json" => pieces.rust(&parse(file, bytes)?)?,
            _ => {}
        }
    }
    Ok(())
}

fn parse<T: for<'de> Deserialize<'de>>(file: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::beside(file, format!("it cannot be parsed ({error})")))
}

/// Whether an added token is special, which no text becomes here.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Special,
    OfText,
}

impl Kind {
    fn of(special: bool) -> Self {
        if special { Self::Special } else { Self::OfText }
    }
}

impl Pieces<'_> {
    fn refusal(&self, reason: impl Into<String>) -> Error {
        Error::beside(self.file, reason)
    }

    fn settings(&self, settings: &Map<String, Value>) -> Result<()> {
        if let Some(class) = settings.get("tokenizer_class").and_then(Value::as_str)
            && !CLASSES.contains(&class)
        {
            let text = format!("tokenizer_class {class:?} makes other ids than the model's own");
            return Err(self.refusal(text));
        }
        if let Some(Value::Object(options)) = settings.get("sp_model_kwargs")
            && !options.is_empty()
        {
            return Err(self.refusal("sp_model_kwargs are not followed; take them out"));
        }
        if let Some(eos) = content(settings.get("eos_token")) {
            let own = self.vocabulary.eos;
            if own.is_some() && self.ids.get(eos).copied() != own {
                let text = format!("eos_token {eos:?} is not the model's end of sequence");
                return Err(self.refusal(text));
            }
        }
        if let Some(Value::Object(tokens)) = settings.get("added_tokens_decoder") {
            for (id, token) in tokens {
                let token: Added = Added::deserialize(token)
                    .map_err(|error| self.refusal(format!("added_tokens_decoder: {error}")))?;
                self.added(&token.content, id.parse().ok(), Kind::of(token.special))?;
            }
        }
        for list in ["additional_special_tokens", "extra_special_tokens"] {
            let tokens: Vec<&Value> = match settings.get(list) {
                Some(Value::Array(tokens)) => tokens.iter().collect(),
                Some(Value::Object(tokens)) => tokens.values().collect(),
                _ => Vec::new(),
            };
            for token in tokens.into_iter().filter_map(|token| content(Some(token))) {
                self.added(token, self.ids.get(token).copied(), Kind::Special)?;
            }
        }
        Ok(())
    }

    fn has_role(&self, token: &str) -> bool {
        self.special.contains(&token) || is_sentinel(token)
    }

    /// Takes an added token that the model has under the same id and not as an ordinary piece, and
    /// special ones with a role, which the model need not have.
    fn added(&self, token: &str, id: Option<u32>, kind: Kind) -> Result<()> {
        let own = self.ids.get(token).copied();
        let reason = match own {
            None if kind == Kind::Special && self.has_role(token) => return Ok(()),
            None => "is not in the SentencePiece model",
            Some(own) if id != Some(own) => "has another id in the SentencePiece model",
            Some(own) if self.is_ordinary(own) => "is an ordinary piece of the SentencePiece model",
            Some(_) => return Ok(()),
        };
        let id = id.map_or_else(String::new, |id| format!(" (id {id})"));
        Err(self.refusal(format!(
            "the added token {token:?}{id} {reason}, so that text with it would have other ids; \
             make it a user-defined piece of the model, or take it out if the base was not \
             trained with it"
        )))
    }

    /// Whether the piece competes with others by its score.
    fn is_ordinary(&self, id: u32) -> bool {
        let is_text = |piece: &Piece| piece.role == Role::Text;
        self.vocabulary.pieces.get(id as usize).is_some_and(is_text)
            && !self.vocabulary.user_defined.contains(&id)
    }

    fn rust(&self, file: &Rust) -> Result<()> {
        for token in &file.added_tokens {
            self.added(&token.content, token.id, Kind::of(token.special))?;
        }
        let Some(model) = &file.model else {
            return Ok(());
        };
        let kind = model.kind.as_deref().unwrap_or_default();
        if !matches!(kind, "" | "Unigram") {
            let text = format!("it is a {kind} tokenizer and no copy of the SentencePiece model");
            return Err(self.refusal(text));
        }
        let Some(Value::Array(vocabulary)) = &model.vocab else {
            return Err(self.refusal("it has no list of pieces"));
        };
        let own = self.vocabulary.pieces.iter();
        let same = own
            .zip(vocabulary)
            .all(|(own, entry)| entry.get(0).and_then(Value::as_str) == Some(own.text.as_str()));
        if !same || vocabulary.len() != self.vocabulary.pieces.len() {
            return Err(self.refusal("its pieces are not those of the SentencePiece model"));
        }
        Ok(())
    }
}

/// A token's text: a string, or an object that has it.
pub(super) fn content(token: Option<&Value>) -> Option<&str> {
    match token? {
        Value::String(text) => Some(text),
        Value::Object(object) => object.get("content")?.as_str(),
        _ => None,
    }
}

/// Whether it is one of T5's sentinels, which its class adds by default.
fn is_sentinel(token: &str) -> bool {
    let number = token.strip_prefix("<extra_id_");
    let number = number.and_then(|rest| rest.strip_suffix('>'));
    number.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::load::Model;

    /// `[PAD]`, `[UNK]`, `<s>` and `</s>` are ids 0 to 3, `<NL>` is user-defined with id 4, and `の`
    /// an ordinary piece.
    const MODEL: &[u8] = include_bytes!("../../tests/fixtures/symbols.model");

    fn checked(file: &str, text: &str) -> Result<()> {
        check(&Model::read(MODEL)?.vocabulary, &[(file, text.as_bytes())])
    }

    #[test]
    fn files_that_change_nothing_are_taken() {
        for (file, text) in [
            ("added_tokens.json", "{}"),
            ("added_tokens.json", r#"{"<NL>": 4, "</s>": 3}"#),
            (
                "special_tokens_map.json",
                r#"{"eos_token": {"content": "</s>", "lstrip": false}, "unk_token": "[X]",
                    "additional_special_tokens": ["[PAD]", "<extra_id_7>"]}"#,
            ),
            (
                "tokenizer_config.json",
                r#"{"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "sp_model_kwargs": {},
                    "eos_token": "</s>", "pad_token": "<p>", "added_tokens_decoder": {
                      "0": {"content": "[PAD]", "special": true},
                      "680": {"content": "<p>", "special": true},
                      "681": {"content": "<extra_id_0>", "special": true},
                      "4": {"content": "<NL>", "special": false}}}"#,
            ),
            (
                "tokenizer.json",
                r#"{"added_tokens": [{"id": 3, "content": "</s>", "special": true}]}"#,
            ),
        ] {
            checked(file, text).unwrap();
        }
    }

    /// transformers 4.57 and 5.24 save a folder with roles that its model has no pieces for so.
    #[test]
    fn roles_count_in_every_file_of_the_folder() {
        let vocabulary = Model::read(MODEL).unwrap().vocabulary;
        let settings = br#"{"sep_token": "[SEP]", "cls_token": {"content": "[CLS]"}}"#;
        let added = br#"{"[SEP]": 680, "[CLS]": 681}"#;
        let rust = br#"{"added_tokens": [{"id": 680, "content": "[SEP]", "special": true}]}"#;
        let files: [(&str, &[u8]); 3] = [
            ("added_tokens.json", added),
            ("tokenizer.json", rust),
            ("tokenizer_config.json", settings),
        ];
        check(&vocabulary, &files).unwrap();
        assert!(check(&vocabulary, &files[..1]).is_err());
        assert!(check(&vocabulary, &files[1..2]).is_err());
    }

    #[test]
    fn what_would_change_ids_or_an_end_is_refused_by_name() {
        for (file, text, named) in [
            ("added_tokens.json", r#"{"[INST]": 680}"#, "[INST]"),
            ("added_tokens.json", r#"{"<NL>": 680}"#, "another id"),
            ("added_tokens.json", "[", "parsed"),
            (
                "special_tokens_map.json",
                r#"{"additional_special_tokens": ["<|user|>"]}"#,
                "<|user|>",
            ),
            (
                "special_tokens_map.json",
                r#"{"eos_token": "<s>"}"#,
                "eos_token",
            ),
            (
                "tokenizer_config.json",
                r#"{"eos_token": "<|end|>"}"#,
                "eos_token",
            ),
            (
                "tokenizer_config.json",
                r#"{"added_tokens_decoder": {"0": {"content": "[CLS]", "special": true}}}"#,
                "[CLS]",
            ),
            (
                "tokenizer_config.json",
                r#"{"tokenizer_class": "AlbertTokenizer"}"#,
                "AlbertTokenizer",
            ),
            (
                "tokenizer_config.json",
                r#"{"sp_model_kwargs": {"enable_sampling": true}}"#,
                "sp_model_kwargs",
            ),
            (
                "tokenizer.json",
                r#"{"model": {"type": "BPE", "vocab": {}}}"#,
                "BPE",
            ),
            (
                "tokenizer.json",
                r#"{"model": {"type": "Unigram", "vocab": [["a", -1.0]]}}"#,
                "pieces",
            ),
            (
                "tokenizer.json",
                r#"{"added_tokens": [{"id": 680, "content": "[INST]"}]}"#,
                "[INST]",
            ),
        ] {
            let error = checked(file, text).unwrap_err().to_string();
            assert!(error.starts_with(file) && error.contains(named), "{error}");
        }
        let model = Model::read(MODEL).unwrap();
        let ordinary = model.vocabulary.pieces[679].text.clone();
        let text = serde_json::json!({ ordinary: 679 }).to_string();
        let error = checked("added_tokens.json", &text).unwrap_err().to_string();
        assert!(error.contains("ordinary piece"), "{error}");
    }
}
