//! Digests of the Python peers' results: see `tests/reference/README.md`.

use std::path::PathBuf;

use serde::Deserialize;
use togi_common::Hasher;
use togi_tokens::Tokenizer;

use crate::strings::Strings;

/// The hex digits of each item that the references keep.
const DIGITS: usize = 3;

/// The references of one model.
#[derive(Deserialize)]
pub(crate) struct Reference {
    /// SHA-256 of the model's file.
    pub(crate) model: String,
    /// The random strings.
    pub(crate) strings: Digests,
    /// The records, for the models that they were tokenized with.
    #[serde(flatten)]
    pub(crate) real: Option<Real>,
}

/// The references of the templated records.
#[derive(Deserialize)]
pub(crate) struct Real {
    /// Ids, and their text.
    pub(crate) records: Digests,
    /// T5Tokenizer's ids, cut at 512 including the end of sequence.
    pub(crate) rows: Digests,
    /// The pieces that T5Tokenizer reads as control ids if a text spells them.
    pub(crate) t5_names: Vec<String>,
    /// The random strings that T5Tokenizer encodes differently from sentencepiece: exactly those
    /// that spell one of these.
    pub(crate) t5_differs: usize,
}

/// Digests of a list of [`Item`]s.
#[derive(Deserialize)]
pub(crate) struct Digests {
    count: usize,
    /// The number of ids of all items.
    ids: usize,
    sha256: String,
    /// Some digits of each item's digest, or nothing.
    #[serde(default)]
    each: String,
}

/// Ids, and the text that they are decoded to.
pub(crate) type Item = (Vec<u32>, String);

pub(crate) fn item(tokenizer: &Tokenizer, text: &str) -> Item {
    let ids = tokenizer.encode(text);
    let decoded = tokenizer.decode(&ids);
    (ids, decoded)
}

impl Reference {
    /// Returns the references of a model by its file's name without the ending.
    pub(crate) fn of(stem: &str) -> Option<Self> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference");
        let json = std::fs::read(folder.join(format!("fixtures/tokens/{stem}.json"))).ok()?;
        Some(serde_json::from_slice(&json).unwrap())
    }

    /// Fails if a random string's ids or their text are not sentencepiece's, or a control id is
    /// among them.
    pub(crate) fn check_strings(&self, tokenizer: &Tokenizer) {
        assert_eq!(tokenizer.digest(), self.model);
        let strings = Strings::new().all();
        let items: Vec<Item> = strings.iter().map(|text| item(tokenizer, text)).collect();
        self.strings
            .check(&items, |at| format!("string {at}, {:?}", strings[at]));
        let ids = items.iter().flat_map(|(ids, _)| ids);
        assert!(ids.into_iter().all(|id| !tokenizer.is_control(*id)));
    }
}

impl Digests {
    /// Fails if an item's ids or its text are not the reference's, and shows the first such item
    /// with `name`, which is its source.
    pub(crate) fn check(&self, items: &[Item], name: impl Fn(usize) -> String) {
        let mut all = Hasher::new();
        for (at, (ids, text)) in items.iter().enumerate() {
            let mut item = Hasher::new();
            item.update((ids.len() as u32).to_le_bytes());
            ids.iter().for_each(|id| item.update(id.to_le_bytes()));
            item.update(text);
            let digest = item.finish();
            all.update(digest.as_bytes());
            if let Some(expected) = self.each.get(at * DIGITS..(at + 1) * DIGITS) {
                let source = || name(at);
                let found = &digest.to_string()[..DIGITS];
                assert_eq!(found, expected, "{}: {text:?} by {ids:?}", source());
            }
        }
        let ids = items.iter().map(|(ids, _)| ids.len()).sum::<usize>();
        assert_eq!((items.len(), ids), (self.count, self.ids));
        assert_eq!(all.finish().to_string(), self.sha256);
    }
}
