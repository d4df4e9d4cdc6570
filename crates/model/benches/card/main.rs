//! Training on a card, measured: an epoch of records, packed, over a base of any size in one of the
//! forms.
//!
//! `card MODE --base FOLDER [--ids FILE] [--steps N]` tells a line of JSON; `tools/bench-gpu` runs
//! it beside its peers. `card load FOLDER` tells how fast a base reaches the card.

#![allow(clippy::print_stdout)]

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

/// Steps before the first that counts.
const WARM_UP: usize = 4;
/// Steps whose speed stands beside the peers', who run as many.
const COMPARED: usize = 48;
/// How often the step that is looked at closely runs.
const ROUNDS: usize = 5;

/// A form of the base, with the records of a micro-batch and the micro-batches of a step that go
/// with it.
struct Mode {
    precision: Precision,
    micro: usize,
    accumulation: usize,
}

/// What the command line asks for.
struct Wanted {
    mode: Mode,
    base: PathBuf,
    ids: Option<PathBuf>,
    steps: usize,
}

impl Wanted {
    fn from_args() -> Self {
        let args: Vec<String> = std::env::args()
            .skip(1)
            .filter(|arg| arg != "--bench")
            .collect();
        let value = |name: &str| {
            let at = args.iter().position(|arg| arg == name)?;
            args.get(at + 1).cloned()
        };
        let name = args.first().expect("card MODE --base FOLDER");
        let precision = Precision::from_name(name).expect("a mode is the name of a form");
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

/// A step as it was taken.
struct Taken {
    tokens: usize,
    records: usize,
    seconds: f64,
    loss: f64,
}

impl Taken {
    fn ms_per_1000_tokens(&self) -> f64 {
        self.seconds * 1e6 / self.tokens as f64
    }
}

/// The median, the tenth's border, and the mean of the slowest tenth.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let slowest = &values[values.len() * 9 / 10..];
    let mean = slowest.iter().sum::<f64>() / slowest.len() as f64;
    [values[values.len() / 2], slowest[0], mean]
}

/// Takes a step over a window, and waits for it.
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

fn take(training: &mut Training<'_>, window: &[Batch], number: u64) -> Taken {
    let began = Instant::now();
    let loss = step(training, window, number).expect("a step");
    Taken {
        tokens: window.iter().map(Batch::tokens).sum(),
        records: window.iter().map(Batch::records).sum(),
        seconds: began.elapsed().as_secs_f64(),
        loss,
    }
}

fn main() {
    let mut words = std::env::args().skip(1);
    if words.next().is_some_and(|word| word == "load") {
        return load::run(words.next().expect("card load FOLDER").as_ref());
    }
    let wanted = Wanted::from_args();
    let Mode {
        precision,
        micro,
        accumulation,
    } = wanted.mode;
    let records = wanted
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
    let base = Base::open(&wanted.base, precision).expect("a base");
    let engine = Engine::on(Arc::new(base), device).expect("a card");
    eprintln!(
        "the base is there after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let settings = settings();
    let lora = Lora::init(engine.config(), &settings, 1).expect("an adapter");
    let optimizer = AdamW::new(lora.len(), AdamWConfig::default());
    let mut training = Training::new(&engine, &lora, &optimizer, World::ALONE).expect("a training");
    // The window of the largest pass and the longest, so that the peak of memory is the epoch's,
    // however few steps are asked for.
    let longest = by_tokens(&windows).into_iter().rev().take(WARM_UP);
    let widest = windows
        .iter()
        .map(Vec::as_slice)
        .max_by_key(|window| largest_pass(window));
    let warm_up = longest.chain(widest);
    for (number, window) in warm_up.enumerate() {
        let taken = take(&mut training, window, number as u64);
        eprintln!(
            "warm-up: {:.1} ms, loss {:.4}",
            taken.seconds * 1e3,
            taken.loss
        );
    }
    let began = Instant::now();
    let taken: Vec<Taken> = windows
        .iter()
        .take(wanted.steps)
        .zip(0..)
        .map(|(window, number)| take(&mut training, window, number))
        .collect();
    let seconds = began.elapsed().as_secs_f64();
    let memory = engine.device_memory();
    let passes = windows.iter().map(|window| largest_pass(window));
    let tokens = passes.max().unwrap_or(0);
    let plan = memory::plan(engine.config(), &settings, tokens, precision, device);
    let mut said = told(&taken, seconds);
    said["mode"] = precision.name().into();
    said["is_epoch"] = (taken.len() == windows.len()).into();
    if let Some((used, total)) = memory {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        said["peak_gib"] = gib(used).into();
        said["plan_gib"] = gib(plan.total()).into();
        said["card_gib"] = gib(total).into();
    }
    said["step"] = closely(
        &engine,
        &mut training,
        by_tokens(&windows)[windows.len() / 2],
    );
    println!("{said}");
}

/// The figures of a run of steps.
fn told(taken: &[Taken], seconds: f64) -> Value {
    let rate = |steps: &[Taken], of: fn(&Taken) -> usize| {
        let seconds: f64 = steps.iter().map(|step| step.seconds).sum();
        steps.iter().map(of).sum::<usize>() as f64 / seconds
    };
    let compared = &taken[..taken.len().min(COMPARED)];
    let [median, border, slowest] = spread(taken.iter().map(Taken::ms_per_1000_tokens).collect());
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

/// What is trained: the numbers of the original and of its peers.
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

/// One step looked at closely: its time as it is, each launch by itself, and its wide products
/// alone.
fn closely(engine: &Engine, training: &mut Training<'_>, window: &[Batch]) -> Value {
    let times = (0..ROUNDS).map(|_| take(training, window, 0).seconds * 1e3);
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
