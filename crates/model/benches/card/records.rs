//! The records of the training: token ids from a file, in its order, or random ones.

use std::ops::Range;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use togi_model::Batch;

/// Lengths of Dolly-ja's records in tokens; random records have the same.
const MEAN: f64 = 166.0;
const LONGEST: usize = 512;
const COUNT: usize = 15_015;
const VOCABULARY: u32 = 32_000;

#[derive(Deserialize)]
struct Line {
    ids: Vec<u32>,
}

/// Token ids of each record, as `togi tokenize` writes them: `{"ids": […]}` a line.
///
/// # Panics
/// The file cannot be read, or a line is something else.
pub(crate) fn read(file: &Path) -> Vec<Vec<u32>> {
    let text = std::fs::read_to_string(file).expect("a file of token ids");
    let lines = text.lines().map(serde_json::from_str::<Line>);
    lines.map(|line| line.expect("ids").ids).collect()
}

/// Random ids. Lengths are exponential from 24 up and cut at the longest, so that their mean is
/// near that of Dolly-ja.
pub(crate) fn random() -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let record = |_| {
        let share: f64 = rng.random_range(0.0..1.0);
        let drawn = 24.0 - (MEAN - 16.0) * (1.0 - share).ln();
        let len = (drawn as usize).min(LONGEST);
        (0..len).map(|_| rng.random_range(0..VOCABULARY)).collect()
    };
    (0..COUNT).map(record).collect()
}

/// A window of records, cut into passes: every token is learned.
pub(crate) fn window(records: &[Vec<u32>], passes: Vec<Range<usize>>) -> Vec<Batch> {
    passes
        .into_iter()
        .map(|range| {
            let mut batch = Batch::new();
            for slot in range {
                let ids = &records[slot];
                let labels: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
                batch.push(ids, &labels, slot as u32);
            }
            batch
        })
        .collect()
}
