//! Measures decoding: sequences that all write together, greedily, with some adapters among them.

use std::sync::Arc;
use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use togi_model::decode::{Decoder, Sequence, Share};
use togi_model::sampling::Options;
use togi_model::{Adapter, Base, DeviceName, Engine, Lora, Precision};

/// Tokens of a prompt and of an answer, as the other programs have them.
const PROMPT: usize = 64;
const NEW: u32 = 256;
/// Repetitions, of which the median counts.
const RUNS: usize = 3;

/// `card decode PRECISION FOLDER BATCH:ADAPTERS...`
pub(crate) fn run(words: &[String]) {
    let [precision, folder, cases @ ..] = words else {
        panic!("card decode PRECISION FOLDER BATCH:ADAPTERS...");
    };
    let precision = Precision::from_name(precision).expect("the name of a precision");
    let base = Base::open(folder.as_ref(), precision).expect("a base");
    let device = DeviceName::Cuda { ordinal: 0 }.device(precision);
    let engine = Engine::on(Arc::new(base), device).expect("a GPU");
    for case in cases {
        let (batch, adapters) = case.split_once(':').expect("BATCH:ADAPTERS");
        let [batch, adapters] = [batch, adapters].map(|count| count.parse().expect("a count"));
        measure(&engine, precision, batch, adapters);
    }
}

fn measure(engine: &Engine, precision: Precision, batch: usize, adapters: usize) {
    let adapters: Vec<Adapter> = (0..adapters)
        .map(|number| adapter(engine, number as u64))
        .collect();
    let decoder = Decoder::new(engine, None);
    let mut speeds: Vec<f64> = (0..RUNS)
        .map(|run| {
            let mut sequences = begin(&decoder, batch, &adapters, run);
            let began = Instant::now();
            finish(&decoder, &mut sequences);
            (batch * NEW as usize) as f64 / began.elapsed().as_secs_f64()
        })
        .collect();
    speeds.sort_by(f64::total_cmp);
    let mut sequences = begin(&decoder, batch, &adapters, 0);
    step(&decoder, &mut sequences);
    step(&decoder, &mut sequences);
    let profile = engine.profile(|| {
        step(&decoder, &mut sequences);
        Ok(())
    });
    let profile = profile.expect("a profile");
    let launches: serde_json::Map<String, serde_json::Value> = profile
        .iter()
        .map(|(name, (count, ms))| (name.clone(), json!([count, ms])))
        .collect();
    let line = json!({
        "precision": precision.name(),
        "batch": batch,
        "adapters": adapters.len(),
        "tokens_per_s": speeds[RUNS / 2],
        "fastest": speeds[RUNS - 1],
        "slowest": speeds[0],
        "launches": launches,
    });
    println!("{line}");
}

/// An adapter of rank 8 on the joint projection, whose B is not zero.
fn adapter(engine: &Engine, seed: u64) -> Adapter {
    let mut lora = Lora::init(engine.config(), &super::settings(), seed).expect("an adapter");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for value in lora.values_mut() {
        if *value == 0.0 {
            *value = rng.random_range(-0.01..0.01);
        }
    }
    engine.adapter(&lora).expect("room for an adapter")
}

fn begin(decoder: &Decoder<'_>, batch: usize, adapters: &[Adapter], run: usize) -> Vec<Sequence> {
    let options = Options {
        max_new_tokens: NEW,
        no_repeat_ngram_size: 0,
        greedy: true,
        ..Options::default()
    };
    (0..batch)
        .map(|number| {
            let seed = run * batch + number;
            let prompt: Vec<u32> = (0..PROMPT)
                .map(|place| 5 + ((place * 7919 + seed * 104_729) % 30_000) as u32)
                .collect();
            let adapter = (!adapters.is_empty()).then(|| adapters[number % adapters.len()].clone());
            decoder.begin(&prompt, adapter, &options).expect("options")
        })
        .collect()
}

/// Runs rounds until all sequences have ended.
fn finish(decoder: &Decoder<'_>, sequences: &mut [Sequence]) {
    while !step(decoder, sequences) {}
}

/// Runs a round; returns whether all sequences have ended.
fn step(decoder: &Decoder<'_>, sequences: &mut [Sequence]) -> bool {
    let mut shares: Vec<Share<'_>> = sequences
        .iter_mut()
        .map(|sequence| Share {
            sequence,
            tokens: PROMPT,
        })
        .collect();
    let choices = decoder.run(&mut shares);
    choices.into_iter().all(|choice| {
        choice
            .expect("a pass")
            .is_some_and(|choice| choice.end.is_some())
    })
}
