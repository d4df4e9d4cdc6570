//! Bytes per second through the tokenizer on one core, with our own text, and with Dolly-ja if
//! `TOGI_DOLLY_JA` and `TOGI_TOKENIZERS` (a folder or a `:`-separated list) name it and the models.

use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use togi_tokens::{Columns, Record, Scratch, Tokenizer, prompt};

const OWN: &str = include_str!("../tests/fixtures/plain.golden.jsonl");

fn own_texts() -> Vec<String> {
    let text = |line: &str| serde_json::from_str::<Vec<serde_json::Value>>(line).ok();
    let texts = OWN.lines().filter_map(text);
    texts
        .filter_map(|line| Some(line.first()?.as_str()?.repeat(20)))
        .collect()
}

fn dolly_texts() -> Option<Vec<String>> {
    let file = std::fs::File::open(std::env::var_os("TOGI_DOLLY_JA")?).ok()?;
    let lines = BufReader::new(flate2::read::MultiGzDecoder::new(file))
        .split(b'\n')
        .flatten();
    let record = |line: Vec<u8>| Record::from_json_slice(&line, &Columns::default()).ok();
    Some(
        lines
            .filter_map(record)
            .map(|record| prompt::training(&record).text)
            .collect(),
    )
}

fn models() -> Vec<PathBuf> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let named = std::env::var_os("TOGI_TOKENIZERS").unwrap_or(own.into());
    let mut paths: Vec<PathBuf> = match std::fs::read_dir(&named) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => std::env::split_paths(&named).collect(),
    };
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "model")
    });
    paths.sort();
    paths
}

fn tokenizer(path: &Path) -> Option<Tokenizer> {
    Tokenizer::from_bytes(&std::fs::read(path).ok()?).ok()
}

fn tokenize(criterion: &mut Criterion) {
    let texts = dolly_texts().unwrap_or_else(own_texts);
    let bytes: usize = texts.iter().map(String::len).sum();
    let mut group = criterion.benchmark_group("tokenize");
    group
        .throughput(Throughput::Bytes(bytes as u64))
        .sample_size(10);
    for path in models() {
        // A model that is refused, such as the tests' BPE one, is skipped.
        let Some(tokenizer) = tokenizer(&path) else {
            continue;
        };
        let (mut scratch, mut ids) = (Scratch::default(), Vec::new());
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for text in &texts {
                    ids.clear();
                    tokenizer.encode_into(text, &mut scratch, &mut ids);
                    black_box(&ids);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, tokenize);
criterion_main!(benches);
