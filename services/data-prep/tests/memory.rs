//! Memory does not grow with the data set. The test reads the peak of its process, and is therefore
//! alone in it.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

use std::io::{self, Read};
use std::sync::Arc;

use togi_data_prep::input::Input;
use togi_data_prep::metrics::Metrics;
use togi_data_prep::pipeline::{OnBadRecord, Plan, prepare};
use togi_data_prep::progress::Progress;
use togi_data_prep::shards::{Form, write};
use togi_tokens::row::Settings;
use togi_tokens::tokenizer::Tokenizer;
use tokio_util::sync::CancellationToken;

/// Generates records as JSON Lines, some of them bad.
struct Generated {
    next: u64,
    records: u64,
    line: Vec<u8>,
    at: usize,
}

impl Read for Generated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.line.len() {
            if self.next == self.records {
                return Ok(0);
            }
            let n = self.next;
            self.next += 1;
            self.at = 0;
            self.line = if n % 50 == 7 {
                format!("{{\"bad\": {n}}}\n").into_bytes()
            } else {
                let answer = "村の祭りは秋に開かれます。".repeat(12);
                format!("{{\"instruction\":\"問い{n}\",\"output\":\"{answer}\"}}\n").into_bytes()
            };
        }
        let count = buffer.len().min(self.line.len() - self.at);
        buffer[..count].copy_from_slice(&self.line[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

fn generated(records: u64) -> Input {
    let reader = Generated {
        next: 0,
        records,
        line: Vec::new(),
        at: 0,
    };
    Input {
        split: togi_tokens::Split::Train,
        reader: Box::new(reader),
        file: None,
    }
}

fn prepare_and_write(records: u64) {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/base/spiece.model");
    let tokenizer = Arc::new(Tokenizer::from_bytes(&std::fs::read(model).unwrap()).unwrap());
    let scratch = tempfile::tempdir().unwrap();
    let (stop, progress) = (CancellationToken::new(), Progress::default());
    let metrics = Metrics::new(&togi_runtime::telemetry::meter());
    let settings = Settings {
        rows_per_shard: 1000,
        ..Settings::default()
    };
    let plan = Plan {
        tokenizer: tokenizer.clone(),
        settings: settings.clone(),
        shape: None,
        format: None,
        on_bad_record: OnBadRecord::Skip,
        workers: 4,
        max_bytes: u64::MAX,
        scratch: scratch.path(),
        stop: &stop,
        progress: &progress,
        metrics: &metrics,
    };
    let file = ("generated".to_owned(), generated(records));
    let prepared = prepare(&plan, [Ok(file)].into_iter()).unwrap();
    assert_eq!(prepared.read, records);
    assert_eq!(prepared.accepted + prepared.rejected, records);
    let form = Form {
        tokenizer_digest: tokenizer.digest(),
        settings: &settings,
        workers: 4,
        folder: scratch.path(),
        stop: &stop,
    };
    let manifest = write(&form, &prepared).unwrap();
    assert_eq!(
        manifest.parts.len() as u64,
        prepared.accepted.div_ceil(1000)
    );
}

/// The peak of the process's resident set in KiB, if the system has it.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[test]
fn a_source_ten_times_as_long_takes_no_more_memory() {
    prepare_and_write(6_000);
    let first = peak();
    prepare_and_write(60_000);
    let (Some(first), Some(second)) = (first, peak()) else {
        eprintln!("skipped: this system does not tell a process's peak memory");
        return;
    };
    // 60,000 records are 30 MB of text and about 80 MB of rows.
    assert!(
        second < first + 16 * 1024,
        "peak {first} KiB, with ten times the records {second} KiB"
    );
}
