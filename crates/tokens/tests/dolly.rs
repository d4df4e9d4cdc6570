//! Real models on real records, where `TOGI_TOKENIZERS` (a folder, or a `:`-separated list of `.model` files) and `TOGI_DOLLY_JA`
//! (`dolly-ja.jsonl.gz`) name them. Their text stays out of the repository; counts and digests of ids are in it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sentencepiece_rs::SentencePieceProcessor;
use sha2::{Digest, Sha256};
use togi_tokens::{Columns, Encoder, Record, Settings, Tokenizer, prompt};

/// File, ids of all records (templated, end of sequence, cut at 512), and the SHA-256 of all ids uncut and without end of sequence
/// (u32 little-endian, each record behind its count), as C++ SentencePiece 0.2.3 gives them.
const EXPECTED: [(&str, usize, &str); 2] = [
    (
        "rinna-gpt2-spiece.model",
        2_708_383,
        "fc377b4032c0b203894183f3700a9b6e27ca80ed2234b3c7ec143c7dbb47bfad",
    ),
    (
        "unigram-32k-bytefallback.model",
        2_499_968,
        "1f752cea21d6af688b8e45830007d70e2aeeb1c76c955581ad712be3c0f85b1f",
    ),
];

/// The other implementation is slow: one record in this many.
const SAMPLED: usize = 500;

fn records() -> Option<Vec<Record>> {
    let Some(path) = std::env::var_os("TOGI_DOLLY_JA") else {
        eprintln!("skipped: TOGI_DOLLY_JA names no dolly-ja.jsonl.gz");
        return None;
    };
    let file = std::fs::File::open(path).unwrap();
    let lines = BufReader::new(flate2::read::MultiGzDecoder::new(file)).split(b'\n');
    let read = |line: Vec<u8>| Record::from_json_slice(&line, &Columns::default()).unwrap();
    Some(lines.map(|line| read(line.unwrap())).collect())
}

fn models() -> Vec<PathBuf> {
    let Some(value) = std::env::var_os("TOGI_TOKENIZERS") else {
        eprintln!("skipped: TOGI_TOKENIZERS names no .model files");
        return Vec::new();
    };
    let is_model = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "model")
    };
    if Path::new(&value).is_dir() {
        let entries = std::fs::read_dir(&value).unwrap();
        let mut paths: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(is_model)
            .collect();
        paths.sort();
        return paths;
    }
    std::env::split_paths(&value).filter(is_model).collect()
}

#[test]
fn real_records_have_the_original_librarys_ids() {
    let models = models();
    let Some(records) = records() else { return };
    for path in models {
        let bytes = std::fs::read(&path).unwrap();
        let tokenizer = Arc::new(Tokenizer::from_bytes(&bytes).unwrap());
        let oracle = SentencePieceProcessor::from_serialized_model(&bytes).unwrap();
        let mut encoder = Encoder::new(Arc::clone(&tokenizer), Settings::default()).unwrap();
        let mut scratch = Default::default();
        let (mut tokens, mut digest, mut ids) = (0, Sha256::new(), Vec::new());
        for (at, record) in records.iter().enumerate() {
            let row = encoder.row(record).unwrap();
            assert_eq!(row.input_ids.last().copied(), tokenizer.eos());
            tokens += row.input_ids.len();

            let text = prompt::training(record).text;
            ids.clear();
            tokenizer.encode_into(&text, &mut scratch, &mut ids);
            digest.update((ids.len() as u32).to_le_bytes());
            ids.iter().for_each(|id| digest.update(id.to_le_bytes()));
            if at % SAMPLED == 0 {
                let expected = oracle.encode_to_ids(&text).unwrap();
                assert!(
                    ids.iter()
                        .map(|id| *id as usize)
                        .eq(expected.iter().copied()),
                    "{text:?}"
                );
                assert_eq!(
                    tokenizer.decode(&ids),
                    oracle.decode_ids(&expected).unwrap()
                );
            }
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        match EXPECTED.iter().find(|(known, ..)| *known == name) {
            Some((_, count, hash)) => {
                assert_eq!(records.len(), 15_015);
                assert_eq!(tokens, *count, "{name}");
                assert_eq!(hex::encode(digest.finalize()), *hash, "{name}");
            }
            None => eprintln!("{name}: {tokens} ids; no count of it is known"),
        }
    }
}
