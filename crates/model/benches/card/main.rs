//! Measures training on a GPU: an epoch of packed records over a base in one of the precisions.
//!
//! `card MODE --base FOLDER [--ids FILE] [--steps N]` prints a line of JSON; `tools/bench-gpu` runs
//! it beside other programs. `card load FOLDER` measures how fast a base is copied to the GPU, and
//! `card decode PRECISION FOLDER BATCH:ADAPTERS|TOKENS@PAST...` how fast answers are written and
//! prompts read.

#![allow(clippy::print_stdout)]

mod decode;
mod load;
mod records;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use togi_model::optim::{AdamW, AdamWConfig};
use togi_model::{
    Base, Batch, DeviceName, Dropout, Engine, Lora, LoraConfig, Precision, Target, Training, World,
    memory,
};

/// Steps that are not measured.
const WARM_UP: usize = 4;
/// Steps whose speed is compared with the other programs', which run as many.
const COMPARED: usize = 48;
/// Repetitions of the step that is profiled.
const ROUNDS: usize = 5;

/// A precision of the base, with the records of a micro-batch and the micro-batches of a step.
struct Mode {
    precision: Precision,
    micro: usize,
    accumulation: usize,
}

/// The command line.
struct Args {
    mode: Mode,
    base: PathBuf,
    ids: Option<PathBuf>,
    steps: usize,
}

impl Args {
    fn read() -> Self {
        let args: Vec<String> = std::env::args()
            .skip(1)
            .filter(|arg| arg != "--bench")
            .collect();
        let value = |name: &str| {
            let at = args.iter().position(|arg| arg == name)?;
            args.get(at + 1).cloned()
        };
        let name = args.first().expect("card MODE --base FOLDER");
        let precision = Precision::from_name(name).expect("a mode is the name of a precision");
        let (micro, accumulation) = match precision {
            Precision::Nf4 => (16, 2),
            Precision::Int8 => (4, 4),
            _ => (32, 1),
        };
        Self {
            mode: Mode {
                precision,
                micro,
                accumulation,
            },
            base: value("--base").expect("--base FOLDER").into(),
            ids: value("--ids").map(Into::into),
            steps: value("--steps").map_or(usize::MAX, |steps| steps.parse().expect("a count")),
        }
    }
}

/// The figures of a step.
struct StepFigures {
    tokens: usize,
    records: usize,
    seconds: f64,
    loss: f64,
}

impl StepFigures {
    fn ms_per_1000_tokens(&self) -> f64 {
        self.seconds * 1e6 / self.tokens as f64
    }
}

/// The median, the fastest of the slowest tenth, and the mean of the slowest tenth.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let slowest = &values[values.len() * 9 / 10..];
    let mean = slowest.iter().sum::<f64>() / slowest.len() as f64;
    [values[values.len() / 2], slowest[0], mean]
}

/// Runs a step over a window, and waits for it.
fn step(training: &mut Training<'_>, window: &[Batch], number: u64) -> togi_model::Result<f64> {
    let dropout = Dropout {
        p: 0.1,
        seed: 1,
        step: number,
    };
    for batch in window {
        training.accumulate(batch, Some(&dropout))?;
    }
    let (loss, _) = training.step(1e-4, 1.0)?;
    Ok(loss.mean())
}

fn measure(training: &mut Training<'_>, window: &[Batch], number: u64) -> StepFigures {
    let began = Instant::now();
    let loss = step(training, window, number).expect("a step");
    StepFigures {
        tokens: window.iter().map(Batch::tokens).sum(),
        records: window.iter().map(Batch::records).sum(),
        seconds: began.elapsed().as_secs_f64(),
        loss,
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("load") => return load::run(words.get(1).expect("card load FOLDER").as_ref()),
        Some("decode") => return decode::run(&words[1..]),
        _ => {}
    }
    let args = Args::read();
    let Mode {
        precision,
        micro,
        accumulation,
    } = args.mode;
    let records = args
        .ids
        .as_deref()
        .map_or_else(records::random, records::read);
    let device = DeviceName::Cuda { ordinal: 0 }.device(precision);
    let windows: Vec<Vec<Batch>> = records
        .chunks(micro * accumulation)
        .map(|records| {
            let lengths: Vec<usize> = records.iter().map(Vec::len).collect();
            records::window(records, device.passes(precision, &lengths, micro))
        })
        .collect();
    let began = Instant::now();
    let base = Base::open(&args.base, precision).expect("a base");
    let engine = Engine::on(Arc::new(base), device).expect("a GPU");
    eprintln!(
        "the base is there after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let settings = settings();
    let lora = Lora::init(engine.config(), &settings, 1).expect("an adapter");
    let optimizer = AdamW::new(lora.len(), AdamWConfig::default());
    let mut training = Training::new(&engine, &lora, &optimizer, World::ALONE).expect("a training");
    // Warms up with the longest windows and that of the largest pass, so that the peak of memory is
    // that of an epoch, even if only a few steps follow.
    let longest = by_tokens(&windows).into_iter().rev().take(WARM_UP);
    let widest = windows
        .iter()
        .map(Vec::as_slice)
        .max_by_key(|window| largest_pass(window));
    let warm_up = longest.chain(widest);
    for (number, window) in warm_up.enumerate() {
        let taken = measure(&mut training, window, number as u64);
        eprintln!(
            "warm-up: {:.1} ms, loss {:.4}",
            taken.seconds * 1e3,
            taken.loss
        );
    }
    let began = Instant::now();
    let taken: Vec<StepFigures> = windows
        .iter()
        .take(args.steps)
        .zip(0..)
        .map(|(window, number)| measure(&mut training, window, number))
        .collect();
    let seconds = began.elapsed().as_secs_f64();
    let memory = engine.device_memory();
    let passes = windows.iter().map(|window| largest_pass(window));
    let tokens = passes.max().unwrap_or(0);
    let plan = memory::plan(engine.config(), &settings, tokens, precision, device);
    let mut report = figures(&taken, seconds);
    report["mode"] = precision.name().into();
    report["is_epoch"] = (taken.len() == windows.len()).into();
    if let Some((used, total)) = memory {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        report["peak_gib"] = gib(used).into();
        report["plan_gib"] = gib(plan.total()).into();
        report["card_gib"] = gib(total).into();
    }
    report["step"] = profile(
        &engine,
        &mut training,
        by_tokens(&windows)[windows.len() / 2],
    );
    println!("{report}");
}

/// The figures of a run of steps.
fn figures(taken: &[StepFigures], seconds: f64) -> Value {
    let rate = |steps: &[StepFigures], of: fn(&StepFigures) -> usize| {
        let seconds: f64 = steps.iter().map(|step| step.seconds).sum();
        steps.iter().map(of).sum::<usize>() as f64 / seconds
    };
    let compared = &taken[..taken.len().min(COMPARED)];
    let [median, border, slowest] =
        spread(taken.iter().map(StepFigures::ms_per_1000_tokens).collect());
    let losses: Vec<f64> = taken.iter().map(|step| step.loss).collect();
    json!({
        "steps": taken.len(),
        "seconds": seconds,
        "samples_per_s": rate(compared, |step| step.records),
        "tokens_per_s": rate(compared, |step| step.tokens),
        "samples_per_s_all": rate(taken, |step| step.records),
        "tokens_per_s_all": rate(taken, |step| step.tokens),
        "tokens": taken.iter().map(|step| step.tokens).sum::<usize>(),
        "most_tokens": taken.iter().map(|step| step.tokens).max(),
        "ms_per_1000_tokens": {"median": median, "slowest_tenth_from": border, "slowest_tenth_mean": slowest},
        "loss": {"first": losses.first(), "last": losses.last()},
    })
}

/// The adapter, as in the programs that it is compared with.
fn settings() -> LoraConfig {
    LoraConfig {
        rank: 8,
        alpha: 32.0,
        dropout: 0.1,
        targets: vec![Target::QueryKeyValue],
    }
}

/// The tokens of a window's largest pass.
fn largest_pass(window: &[Batch]) -> usize {
    window.iter().map(Batch::tokens).max().unwrap_or(0)
}

/// The windows from the shortest to the longest.
fn by_tokens(windows: &[Vec<Batch>]) -> Vec<&[Batch]> {
    let mut sorted: Vec<&[Batch]> = windows.iter().map(Vec::as_slice).collect();
    sorted.sort_by_key(|window| window.iter().map(Batch::tokens).sum::<usize>());
    sorted
}

/// One step in detail: its time, the time of each launch, and the time of its wide products alone.
fn profile(engine: &Engine, training: &mut Training<'_>, window: &[Batch]) -> Value {
    let times = (0..ROUNDS).map(|_| measure(training, window, 0).seconds * 1e3);
    let [ms, ..] = spread(times.collect());
    let profile = engine
        .profile(|| step(training, window, 0).map(|_| ()))
        .expect("a profile");
    let (products, alone) = engine
        .products_alone(ROUNDS, || step(training, window, 0).map(|_| ()))
        .expect("products");
    let launches: BTreeMap<&String, Value> = profile
        .iter()
        .map(|(name, (count, ms))| (name, json!([count, ms])))
        .collect();
    json!({
        "tokens": window.iter().map(Batch::tokens).sum::<usize>(),
        "ms": ms,
        "products_alone": products,
        "products_alone_ms": alone,
        "launches": launches,
    })
}
