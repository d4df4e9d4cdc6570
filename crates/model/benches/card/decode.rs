//! Measures decoding: sequences that all write together, greedily, with some adapters among them;
//! and chunks of a prompt.

use std::sync::Arc;
use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use togi_model::decode::{Decoder, Sequence, Share};
use togi_model::sampling::Options;
use togi_model::{Adapter, Base, DeviceName, Engine, Lora, Precision};

/// Tokens of a prompt and of an answer, as the other programs have them.
const PROMPT: usize = 64;
const NEW: u32 = 256;
/// Repetitions, of which the median counts.
const RUNS: usize = 3;

/// Repetitions of a chunk, each over a prompt of its own.
const CHUNKS: usize = 9;

/// `card decode PRECISION FOLDER BATCH:ADAPTERS|TOKENS@PAST...`
pub(crate) fn run(words: &[String]) {
    let [precision, folder, cases @ ..] = words else {
        panic!("card decode PRECISION FOLDER BATCH:ADAPTERS|TOKENS@PAST...");
    };
    let precision = Precision::from_name(precision).expect("the name of a precision");
    let base = Base::open(folder.as_ref(), precision).expect("a base");
    let device = DeviceName::Cuda { ordinal: 0 }.device(precision);
    let engine = Engine::on(Arc::new(base), device).expect("a GPU");
    for case in cases {
        if let Some((tokens, past)) = case.split_once('@') {
            let [tokens, past] = [tokens, past].map(|count| count.parse().expect("a count"));
            measure_chunk(&engine, precision, tokens, past);
            continue;
        }
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
    let mut rounds = Vec::new();
    let mut speeds: Vec<f64> = (0..RUNS)
        .map(|run| {
            let mut sequences = begin(&decoder, batch, &adapters, run);
            let began = Instant::now();
            while !step(&decoder, &mut sequences, &mut rounds) {}
            (batch * NEW as usize) as f64 / began.elapsed().as_secs_f64()
        })
        .collect();
    speeds.sort_by(f64::total_cmp);
    let median = |part: fn(&[f64; 2]) -> f64| median(rounds.iter().map(part));
    let (to_begin, to_finish) = (median(|ms| ms[0]), median(|ms| ms[1]));
    let mut sequences = begin(&decoder, batch, &adapters, 0);
    for _ in 0..2 {
        step(&decoder, &mut sequences, &mut rounds);
    }
    let launches = profile(engine, || {
        step(&decoder, &mut sequences, &mut rounds);
    });
    let line = json!({
        "precision": precision.name(),
        "batch": batch,
        "adapters": adapters.len(),
        "tokens_per_s": speeds[RUNS / 2],
        "fastest": speeds[RUNS - 1],
        "slowest": speeds[0],
        "ms_to_begin_and_finish_a_round": [to_begin, to_finish],
        "launches": launches,
    });
    println!("{line}");
}

/// Measures a chunk of a prompt after the tokens before it.
fn measure_chunk(engine: &Engine, precision: Precision, tokens: usize, past: usize) {
    let adapter = adapter(engine, 0);
    let decoder = Decoder::new(engine, None);
    let read = |sequence: &mut Sequence, tokens: usize| {
        let mut shares = [Share { sequence, tokens }];
        decoder.run(&mut shares).remove(0).expect("a pass");
    };
    // One token of the prompt stays unread.
    let begin = |seed| {
        let prompt = prompt(past + tokens + 1, seed);
        let begun = decoder.begin(&prompt, Some(adapter.clone()), &options());
        let mut sequence = begun.expect("options");
        while sequence.read() < past {
            let left = past - sequence.read();
            read(&mut sequence, left.min(512));
        }
        sequence
    };
    let times = (0..CHUNKS).map(|seed| {
        let mut sequence = begin(seed);
        let began = Instant::now();
        read(&mut sequence, tokens);
        began.elapsed().as_secs_f64() * 1e3
    });
    let ms = median(times);
    let mut sequence = begin(CHUNKS);
    let launches = profile(engine, || read(&mut sequence, tokens));
    let line = json!({
        "precision": precision.name(),
        "tokens": tokens,
        "past": past,
        "ms": ms,
        "launches": launches,
    });
    println!("{line}");
}

/// The launches of some work: how often each kernel ran, and its milliseconds.
fn profile(engine: &Engine, work: impl FnOnce()) -> Map<String, Value> {
    let profile = engine.profile(|| {
        work();
        Ok(())
    });
    let launches = profile.expect("a profile").into_iter();
    let launches = launches.map(|(name, (count, ms))| (name, json!([count, ms])));
    launches.collect()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
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

fn options() -> Options {
    Options {
        max_new_tokens: NEW,
        no_repeat_ngram_size: 0,
        greedy: true,
        ..Options::default()
    }
}

fn prompt(len: usize, seed: usize) -> Vec<u32> {
    let ids = (0..len).map(|place| 5 + ((place * 7919 + seed * 104_729) % 30_000) as u32);
    ids.collect()
}

fn begin(decoder: &Decoder<'_>, batch: usize, adapters: &[Adapter], run: usize) -> Vec<Sequence> {
    let options = options();
    (0..batch)
        .map(|number| {
            let prompt = prompt(PROMPT, run * batch + number);
            let adapter = (!adapters.is_empty()).then(|| adapters[number % adapters.len()].clone());
            decoder.begin(&prompt, adapter, &options).expect("options")
        })
        .collect()
}

/// Runs a round, and notes the milliseconds to begin and to finish it. Returns whether all
/// sequences have ended.
fn step(decoder: &Decoder<'_>, sequences: &mut [Sequence], rounds: &mut Vec<[f64; 2]>) -> bool {
    let mut shares: Vec<Share<'_>> = sequences
        .iter_mut()
        .map(|sequence| Share {
            sequence,
            tokens: PROMPT,
        })
        .collect();
    let began = Instant::now();
    let round = decoder.begin_round(&mut shares);
    let begun = Instant::now();
    let choices = decoder.finish_round(round, &mut shares);
    rounds.push([begun - began, begun.elapsed()].map(|time| time.as_secs_f64() * 1e3));
    choices.into_iter().all(|choice| {
        choice
            .expect("a pass")
            .is_some_and(|choice| choice.end.is_some())
    })
}
