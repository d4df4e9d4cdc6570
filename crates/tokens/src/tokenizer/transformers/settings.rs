//! The settings beside `tokenizer.json`: which special token has which role, and what transformers
//! does where a call does not say.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::tokenizer::beside::content;
use crate::tokenizer::vocabulary::{Role, Vocabulary};

/// Settings of a folder that hold for any class of tokenizer.
const KEPT: [&str; 4] = [
    "chat_template",
    "model_max_length",
    "padding_side",
    "truncation_side",
];
/// Roles that only the folder gives.
const OTHER_ROLES: [&str; 3] = ["cls_token", "mask_token", "sep_token"];

/// The roles of special tokens, and what else is kept of a folder's settings.
pub(super) struct Roles {
    roles: Map<String, Value>,
    kept: Map<String, Value>,
}

impl Roles {
    /// Takes roles from the folder's files where the model has their tokens as special ones, and
    /// the model's own for the others.
    pub(super) fn read(vocabulary: &Vocabulary, beside: &[(&str, &[u8])]) -> Result<Self> {
        let mut found = Vec::new();
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            if let Some((_, bytes)) = beside.iter().find(|(name, _)| *name == file) {
                let settings: Map<String, Value> =
                    serde_json::from_slice(bytes).map_err(|error| {
                        Error::beside(file, format!("it cannot be parsed ({error})"))
                    })?;
                found.push(settings);
            }
        }
        let special = |name: &str| {
            let mut pieces = vocabulary.pieces.iter();
            pieces.any(|piece| {
                piece.text == name && matches!(piece.role, Role::Control | Role::Unknown)
            })
        };
        let text = |id: u32| vocabulary.pieces[id as usize].text.as_str();
        let own = [
            ("bos_token", vocabulary.bos.map(text)),
            ("eos_token", vocabulary.eos.map(text)),
            ("unk_token", Some(text(vocabulary.unk))),
            // rinna's models name it otherwise than SentencePiece does.
            ("pad_token", vocabulary.pad.map(text).or(Some("[PAD]"))),
        ];
        let others = OTHER_ROLES.map(|role| (role, None));
        let mut roles = Map::new();
        for (role, own) in own.into_iter().chain(others) {
            let given = found
                .iter()
                .filter_map(|settings| content(settings.get(role)));
            let mut tokens = given.chain(own).filter(|token| special(token));
            if let Some(token) = tokens.next() {
                roles.insert(role.to_owned(), json!(token));
            }
        }
        let kept = KEPT.iter().filter_map(|name| {
            let value = found.iter().find_map(|settings| settings.get(*name))?;
            Some(((*name).to_owned(), value.clone()))
        });
        Ok(Self {
            kept: kept.collect(),
            roles,
        })
    }

    /// The files, each with its name.
    pub(super) fn files(self) -> [(&'static str, Vec<u8>); 2] {
        let mut settings = json!({
            "clean_up_tokenization_spaces": false,
            "model_input_names": ["input_ids", "attention_mask"],
            // A text that spells a special token is text, as SentencePiece has it.
            "split_special_tokens": true,
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        if let Value::Object(settings) = &mut settings {
            settings.extend(self.roles.clone());
            settings.extend(self.kept);
        }
        let text = |value: Value| format!("{value:#}\n").into_bytes();
        [
            ("tokenizer_config.json", text(settings)),
            ("special_tokens_map.json", text(Value::Object(self.roles))),
        ]
    }
}
