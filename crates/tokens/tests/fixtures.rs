//! The small models (made by `fixtures/make.py`) and shared functions of their tests.

use std::path::PathBuf;
use std::sync::Arc;

use togi_tokens::{Record, Tokenizer};

/// The unigram models.
pub(crate) const MODELS: [&str; 4] = ["plain", "prefix", "symbols", "suffix"];

pub(crate) fn bytes(file: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn tokenizer(name: &str) -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_bytes(&bytes(&format!("{name}.model"))).unwrap())
}

pub(crate) fn record(instruction: &str, input: &str, output: &str) -> Record {
    Record {
        instruction: instruction.to_owned(),
        input: input.to_owned(),
        output: output.to_owned(),
        category: "open_qa".to_owned(),
        index: String::new(),
    }
}
