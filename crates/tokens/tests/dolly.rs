//! Real models on real records, if `TOGI_TOKENIZERS` (a folder, or a `:`-separated list of
//! `.model` files) and `TOGI_DOLLY_JA` (`dolly-ja.jsonl.gz`) name them. The repository has counts
//! and digests of their ids, but not their text.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use togi_tokens::{Columns, Encoder, Record, Settings, Tokenizer, prompt};

use crate::reference::{Item, Real, Reference, item};
use crate::strings::Strings;
use crate::transformers::{Pair, loaded};

/// A model that has references.
struct Model {
    name: String,
    bytes: Vec<u8>,
    tokenizer: Arc<Tokenizer>,
    reference: Reference,
}

impl Model {
    fn read(path: &Path) -> Option<Self> {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let Some(reference) = Reference::of(name) else {
            eprintln!("skipped: there are no references for {name}");
            return None;
        };
        let bytes = std::fs::read(path).unwrap();
        let tokenizer = Tokenizer::from_bytes(&bytes).unwrap();
        assert_eq!(tokenizer.digest(), reference.model, "{name}");
        Some(Self {
            name: name.to_owned(),
            bytes,
            tokenizer: Arc::new(tokenizer),
            reference,
        })
    }

    fn real(&self) -> &Real {
        let real = self.reference.real.as_ref();
        real.expect("a model that is no test's own has references of the records")
    }
}

fn models() -> Vec<Model> {
    let Some(value) = std::env::var_os("TOGI_TOKENIZERS") else {
        eprintln!("skipped: TOGI_TOKENIZERS names no .model files");
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = if Path::new(&value).is_dir() {
        let entries = std::fs::read_dir(&value).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    } else {
        std::env::split_paths(&value).collect()
    };
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "model"));
    paths.iter().filter_map(|path| Model::read(path)).collect()
}

fn records() -> Vec<Record> {
    let Some(path) = std::env::var_os("TOGI_DOLLY_JA") else {
        eprintln!("skipped: TOGI_DOLLY_JA names no dolly-ja.jsonl.gz");
        return Vec::new();
    };
    let file = std::fs::File::open(path).unwrap();
    let lines = BufReader::new(flate2::read::MultiGzDecoder::new(file)).split(b'\n');
    let read = |line: Vec<u8>| Record::from_json_slice(&line, &Columns::default()).unwrap();
    lines.map(|line| read(line.unwrap())).collect()
}

#[test]
fn real_records_have_sentencepieces_ids_and_texts() {
    let (models, records) = (models(), records());
    if records.is_empty() {
        return;
    }
    let texts: Vec<String> = records.iter().map(|r| prompt::training(r).text).collect();
    for model in models {
        let items = texts.iter().map(|text| item(&model.tokenizer, text));
        let items: Vec<Item> = items.collect();
        model
            .real()
            .records
            .check(&items, |at| format!("record {at}, {:?}", texts[at]));
    }
}

#[test]
fn rows_of_real_records_are_t5_tokenizers() {
    let (models, records) = (models(), records());
    if records.is_empty() {
        return;
    }
    for model in models {
        let mut encoder = Encoder::new(Arc::clone(&model.tokenizer), Settings::default()).unwrap();
        let row = |record| (encoder.row(record).unwrap().input_ids, String::new());
        let rows: Vec<Item> = records.iter().map(row).collect();
        model.real().rows.check(&rows, |at| format!("row {at}"));
    }
}

#[test]
fn random_strings_have_sentencepieces_ids_and_texts_with_real_models() {
    for model in models() {
        model.reference.check_strings(&model.tokenizer);
    }
}

#[test]
fn a_control_piece_in_text_is_text_where_t5_tokenizer_makes_it_one() {
    let strings = Strings::new().all();
    for model in models() {
        let (tokenizer, real) = (&model.tokenizer, model.real());
        let spells = |text: &&String| real.t5_names.iter().any(|name| text.contains(name));
        let spelling: Vec<&String> = strings.iter().filter(spells).collect();
        assert_eq!(spelling.len(), real.t5_differs);
        for text in spelling {
            let ids = tokenizer.encode(text);
            assert!(ids.iter().all(|id| !tokenizer.is_control(*id)), "{text:?}");
        }
    }
}

/// One record in this many is compared in the library, which is slow; `loaded.py` compares all.
const COMPARED: usize = 10;

/// The texts whose ids the library's sums in 64 bits make others, of a model's random strings and
/// of the compared records' fields.
fn ties_of(name: &str) -> (usize, usize) {
    match name {
        "rinna-gpt2-spiece" => (19, 2),
        "unigram-32k-bytefallback" => (67, 0),
        other => panic!("the ties of {other} are not counted"),
    }
}

#[test]
fn real_models_have_our_ids_in_the_library_that_reads_their_tokenizer_json() {
    let records = records().into_iter().step_by(COMPARED);
    let fields = records.flat_map(|record| [record.instruction, record.input, record.output]);
    let fields: Vec<String> = fields.collect();
    let strings = Strings::new().all();
    for model in models() {
        let pair = Pair::of(&model.bytes);
        let (of_strings, of_fields) = ties_of(&model.name);
        assert_eq!(pair.ties(&strings), of_strings, "{}", model.name);
        pair.check_texts(&strings);
        if !fields.is_empty() {
            assert_eq!(pair.ties(&fields), of_fields, "{}", model.name);
            pair.check_texts(&fields);
        }
    }
}

#[test]
fn real_models_have_sentencepieces_ids_in_transformers() {
    for model in models() {
        loaded(&model.name, &model.bytes);
    }
}
