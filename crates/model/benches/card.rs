//! Training speed on a card: a random base of rinna-3.6b's exact shape, records as long as Dolly-ja's, one packed sequence a
//! step. `cargo bench -p togi-model --features cuda --bench card -- [bf16|nf4|int8] [steps] [--profile]`

#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use togi_model::optim::{AdamW, AdamWConfig};
use togi_model::{
    Activation, Base, Batch, Config, Device, Dropout, Engine, Float, Lora, LoraConfig, Precision,
    Target, Training, Weight, World,
};

const RECORDS: usize = 32;
const WARM_UP: usize = 4;
/// Of Dolly-ja's records, in tokens.
const MEAN: f64 = 166.0;
const LONGEST: usize = 512;

fn config() -> Config {
    Config {
        vocab_size: 32_000,
        hidden_size: 2816,
        num_hidden_layers: 36,
        num_attention_heads: 22,
        intermediate_size: 11_264,
        hidden_act: Activation::Gelu,
        rotary_pct: 1.0,
        rotary_emb_base: 10_000.0,
        max_position_embeddings: 2048,
        layer_norm_eps: 1e-5,
        use_parallel_residual: false,
        tie_word_embeddings: false,
        attention_bias: true,
        bos_token_id: Some(2),
        eos_token_id: Some(3),
        pad_token_id: None,
    }
}

/// A base whose layers share one layer's random weights in the host's memory; each has its own on the card.
fn base(precision: Precision) -> Base {
    let mut first: HashMap<String, Weight> = HashMap::new();
    let made = Base::made(config(), precision, |name, shape| {
        let parts: Vec<&str> = name.split('.').collect();
        let key = match parts.as_slice() {
            [model, layers, _, rest @ ..] if *layers == "layers" => {
                format!("{model}.{}", rest.join("."))
            }
            _ => name.to_owned(),
        };
        if let Some(weight) = first.get(&key) {
            return Ok(weight.clone());
        }
        let mut rng = ChaCha8Rng::seed_from_u64(first.len() as u64);
        let (centre, bound) = match (name.ends_with("bias"), name.contains("norm")) {
            (true, _) => (0.0, 0.01),
            (false, true) => (1.0, 0.01),
            (false, false) => (0.0, 0.035),
        };
        let values = (0..shape.iter().product())
            .map(|_| centre + rng.random_range(-bound..bound))
            .collect();
        let is_linear = parts.len() > 3 && shape.len() == 2;
        let precision = if is_linear { precision } else { Precision::F32 };
        let weight = Weight::new(name, values, shape, Float::F32, precision)?;
        first.insert(key, weight.clone());
        Ok(weight)
    });
    made.expect("a base")
}

/// Lengths whose mean is near Dolly-ja's: exponential, from 24 up, cut at the longest.
fn batch(rng: &mut ChaCha8Rng) -> Batch {
    let mut batch = Batch::new();
    for slot in 0..RECORDS {
        let share: f64 = rng.random_range(0.0..1.0);
        let drawn = 24.0 - (MEAN - 16.0) * (1.0 - share).ln();
        let len = (drawn as usize).min(LONGEST);
        let ids: Vec<u32> = (0..len).map(|_| rng.random_range(0..32_000)).collect();
        let labels: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        batch.push(&ids, &labels, slot as u32);
    }
    batch
}

/// Median, and the slowest tenth's border.
fn spread(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[values.len() * 9 / 10])
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = args.iter().find_map(|arg| arg.parse::<usize>().ok());
    let precision = match args.iter().find_map(|arg| Precision::from_name(arg).ok()) {
        Some(precision @ (Precision::Nf4 | Precision::Int8)) => precision,
        _ => Precision::F32,
    };
    let began = Instant::now();
    let base = Arc::new(base(precision));
    println!("base made in {:.1} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    let device = Device::Cuda {
        ordinal: 0,
        float: Float::Bf16,
    };
    let engine = Engine::on(base, device).expect("a card");
    println!("base on the card in {:.1} s", began.elapsed().as_secs_f64());
    let settings = LoraConfig {
        rank: 8,
        alpha: 32.0,
        dropout: 0.1,
        targets: vec![Target::QueryKeyValue],
    };
    let lora = Lora::init(engine.config(), &settings, 1).expect("an adapter");
    let optimizer = AdamW::new(lora.len(), AdamWConfig::default());
    let mut training = Training::new(&engine, &lora, &optimizer, World::ALONE).expect("a training");
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let (mut seconds, mut tokens, mut per_token) = (0.0, 0, Vec::new());
    let steps = number.unwrap_or(40);
    for step in 0..WARM_UP + steps {
        let batch = batch(&mut rng);
        let dropout = Dropout {
            p: 0.1,
            seed: 1,
            step: step as u64,
        };
        let began = Instant::now();
        training.accumulate(&batch, Some(&dropout)).expect("a pass");
        let (loss, norm) = training.step(1e-4, 1.0).expect("a step");
        let took = began.elapsed().as_secs_f64();
        if step >= WARM_UP {
            seconds += took;
            tokens += batch.tokens();
            per_token.push(took * 1e6 / batch.tokens() as f64);
        } else {
            let (ms, loss, tokens) = (took * 1e3, loss.mean(), batch.tokens());
            println!("warm-up: {ms:.1} ms, {tokens} tokens, loss {loss:.4}, norm {norm:.4}");
        }
    }
    let first: Vec<String> = per_token
        .iter()
        .take(12)
        .map(|ms| format!("{ms:.1}"))
        .collect();
    println!(
        "ms per 1,000 tokens of the first steps: {}",
        first.join(" ")
    );
    let (median, slow) = spread(per_token);
    println!(
        "{}, {steps} steps of {RECORDS} records: {:.1} samples/s, {:.0} tokens/s, {:.1} ms a step, {:.0} tokens a step, \
         ms per 1,000 tokens: median {median:.2}, slowest tenth {slow:.2}",
        match precision {
            Precision::F32 => "bf16",
            quantized => quantized.name(),
        },
        (steps * RECORDS) as f64 / seconds,
        tokens as f64 / seconds,
        seconds * 1e3 / steps as f64,
        tokens as f64 / steps as f64,
    );
    if let Some((used, total)) = engine.device_memory() {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        println!("peak memory {:.2} of {:.1} GiB", gib(used), gib(total));
    }
    if args.iter().any(|arg| arg == "--profile") {
        profile(&engine, &mut training, &batch(&mut rng));
    }
}

/// Where the time of one step goes; the products' share is the time of the matrix products alone.
fn profile(engine: &Engine, training: &mut Training<'_>, batch: &Batch) {
    let dropout = Dropout {
        p: 0.1,
        seed: 1,
        step: 0,
    };
    let measured = engine
        .profile(|| {
            training.accumulate(batch, Some(&dropout))?;
            training.step(1e-4, 1.0).map(|_| ())
        })
        .expect("a measured step");
    let total: f64 = measured.values().map(|(_, ms)| ms).sum();
    println!("one step of {} tokens, {total:.1} ms:", batch.tokens());
    for (name, (count, ms)) in measured {
        println!("  {ms:8.2} ms {count:5} x {name}");
    }
}
