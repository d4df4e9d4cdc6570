//! The `tokenizer.json` that is written for transformers, in the library that reads it.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use togi_tokens::{Tokenizer, tokenizer::transformers};
use tokenizers::Tokenizer as Library;

use crate::fixtures::bytes;
use crate::strings::Strings;

/// A model, and what the library makes of its files.
pub(crate) struct Pair {
    ours: Tokenizer,
    library: Library,
    scores: Vec<f64>,
}

impl Pair {
    pub(crate) fn of(model: &[u8]) -> Self {
        let json = file(model, "tokenizer.json");
        let value: Value = serde_json::from_slice(&json).unwrap();
        let entries = value["model"]["vocab"].as_array().unwrap();
        let mut library = Library::from_bytes(&json).unwrap();
        // As transformers sets it by `split_special_tokens`.
        library.set_encode_special_tokens(true);
        Self {
            ours: Tokenizer::from_bytes(model).unwrap(),
            library,
            scores: entries
                .iter()
                .map(|entry| entry[1].as_f64().unwrap())
                .collect(),
        }
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        let encoding = self.library.encode_fast(text, false).unwrap();
        encoding.get_ids().to_vec()
    }

    /// Returns how many texts have other ids in the library, which may only be where two ways to
    /// cut a text have the same score, or one so near that 32-bit sums do not tell them apart. The
    /// library sums in 64 bits.
    pub(crate) fn ties(&self, texts: &[String]) -> usize {
        let sum = |ids: &[u32]| ids.iter().map(|id| self.scores[*id as usize]).sum::<f64>();
        let pieces = |ids: &[u32]| {
            ids.iter()
                .map(|id| self.ours.piece(*id))
                .collect::<String>()
        };
        let mut ties = 0;
        for text in texts {
            let (ours, theirs) = (self.ours.encode(text), self.ids(text));
            if ours == theirs {
                continue;
            }
            let (our_sum, their_sum) = (sum(&ours), sum(&theirs));
            let near = our_sum <= their_sum && their_sum - our_sum <= 1e-6 * our_sum.abs();
            assert!(
                pieces(&ours) == pieces(&theirs) && near,
                "{text:?}: {ours:?} is {our_sum}, {theirs:?} is {their_sum}"
            );
            ties += 1;
        }
        ties
    }

    /// Fails if ids without special ones have another text in the library.
    pub(crate) fn check_texts(&self, texts: &[String]) {
        let unk = self.ours.unk().unwrap();
        for text in texts {
            let mut ids = self.ours.encode(text);
            ids.retain(|id| *id != unk);
            let decoded = self.library.decode(&ids, true).unwrap();
            assert_eq!(decoded, self.ours.decode(&ids), "{ids:?}");
        }
    }
}

fn file(model: &[u8], name: &str) -> Vec<u8> {
    let files = transformers::files(model, &[]).unwrap();
    let found = files.into_iter().find(|(file, _)| *file == name);
    found.unwrap().1
}

fn demo() -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../demo/base/spiece.model");
    std::fs::read(path).unwrap()
}

#[test]
fn random_strings_have_our_ids_and_texts_in_the_library_that_reads_the_file() {
    let strings = Strings::new().all();
    for (name, model, ties) in [
        ("demo", demo(), 0),
        ("plain", bytes("plain.model"), 0),
        ("prefix", bytes("prefix.model"), 0),
        ("suffix", bytes("suffix.model"), 0),
        ("newline", bytes("newline.model"), 0),
        ("rivals", bytes("rivals.model"), 19),
    ] {
        let pair = Pair::of(&model);
        assert_eq!(pair.ties(&strings), ties, "{name}");
        pair.check_texts(&strings);
    }
}

#[test]
fn what_the_library_has_no_word_for_is_refused_by_name() {
    let reason = transformers::files(&bytes("symbols.model"), &[]).unwrap_err();
    let reason = reason.to_string();
    assert!(reason.contains("\"は\" is not used"), "{reason}");
}

/// Lets each transformers that is configured load a model's files, and compare its ids with
/// sentencepiece's: of random strings and, if they are at hand, of records.
pub(crate) fn loaded(name: &str, model: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    for (file, bytes) in transformers::files(model, &[]).unwrap() {
        std::fs::write(folder.path().join(file), bytes).unwrap();
    }
    std::fs::write(folder.path().join("spiece.model"), model).unwrap();
    std::fs::write(
        folder.path().join("config.json"),
        r#"{"model_type": "gpt_neox"}"#,
    )
    .unwrap();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    for variable in ["TOGI_PEFT_PYTHON", "TOGI_TRANSFORMERS_4_PYTHON"] {
        let Some(python) = std::env::var_os(variable) else {
            eprintln!("SKIPPED transformers over {name}: {variable} names no Python");
            continue;
        };
        let mut command = Command::new(python);
        command.arg(root.join("tests/reference/loaded.py"));
        command.arg("tokenizer").arg(folder.path());
        if let Some(records) = std::env::var_os("TOGI_DOLLY_JA") {
            command.arg("--records").arg(records);
        }
        let output = command.env("HF_HUB_OFFLINE", "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{variable} {name}: {text}");
        eprintln!("{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn the_demos_model_has_sentencepieces_ids_in_transformers() {
    loaded("demo", &demo());
}
