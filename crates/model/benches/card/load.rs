//! Measures how fast a base is loaded to the GPU in each precision, beside a plain copy of as many
//! bytes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use togi_model::engine::bench::LoadTimes;
use togi_model::{Base, DeviceName, Engine, Precision};

/// The precisions; the first is that of the usual files.
const PRECISIONS: [Precision; 4] = [
    Precision::Bf16,
    Precision::Nf4,
    Precision::Int8,
    Precision::Fp8,
];
/// Repetitions of each load.
const ROUNDS: usize = 3;

/// Loads a folder and prints a line of JSON: medians in seconds and in GB of the files per second.
pub(crate) fn run(folder: &Path) {
    let bytes = weight_bytes(folder);
    let mut copies = Vec::new();
    let mut forms: BTreeMap<&str, Value> = BTreeMap::new();
    for precision in PRECISIONS {
        let mut times: Vec<f64> = Vec::new();
        for _ in 0..ROUNDS {
            let base = Base::open(folder, precision).expect("a base");
            let device = DeviceName::Cuda { ordinal: 0 }.device(precision);
            let engine = Engine::on(Arc::new(base), device).expect("a GPU");
            let LoadTimes {
                total,
                filling,
                waiting,
            } = engine.load_times().expect("a GPU's times");
            times.push(total.as_secs_f64());
            eprintln!(
                "{}: {total:?}, {filling:?} of it filling pinned memory, {waiting:?} waiting for the GPU",
                precision.name(),
            );
            copies.push(engine.copy_plainly(bytes).expect("a copy"));
        }
        let seconds = median(times);
        let rate = bytes as f64 / seconds / 1e9;
        forms.insert(
            precision.name(),
            json!({"seconds": seconds, "gb_per_s": rate}),
        );
    }
    eprintln!("plain copies: {copies:.4?} s");
    let copy = bytes as f64 / median(copies) / 1e9;
    println!("{}", json!({"bytes": bytes, "copy": copy, "forms": forms}));
}

/// Bytes of a folder's weight files.
fn weight_bytes(folder: &Path) -> usize {
    let files = std::fs::read_dir(folder).expect("a folder");
    files
        .map(|file| file.expect("a file"))
        .filter(|file| file.path().extension().is_some_and(|e| e == "safetensors"))
        .map(|file| file.metadata().expect("a size").len() as usize)
        .sum()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
