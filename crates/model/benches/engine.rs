//! Training and decoding speed on a random base of the demo's shape, and the kernels that are not
//! products.

use std::cell::LazyCell;
use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use togi_model::optim::{AdamW, AdamWConfig};
use togi_model::sampling::{Options, Sampler};
use togi_model::{
    Activation, Adapter, Base, Batch, Cache, Config, Dropout, Engine, Float, Lora, LoraConfig,
    Phase, Precision, Segment, Target, Training, Weight, World, base,
};

fn config() -> Config {
    Config {
        vocab_size: 1500,
        hidden_size: 128,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        intermediate_size: 512,
        hidden_act: Activation::Gelu,
        rotary_pct: 1.0,
        rotary_emb_base: 10_000.0,
        max_position_embeddings: 512,
        layer_norm_eps: 1e-5,
        use_parallel_residual: false,
        tie_word_embeddings: false,
        attention_bias: true,
        attention_dropout: 0.0,
        hidden_dropout: 0.0,
        bos_token_id: Some(2),
        eos_token_ids: vec![3],
        pad_token_id: None,
    }
}

fn engine() -> Engine {
    let dir = tempfile::tempdir().expect("a temporary folder");
    base::write_random(dir.path(), &config(), 1).expect("a written base");
    Engine::new(Arc::new(Base::load(dir.path()).expect("a loaded base"))).expect("an engine")
}

/// Two layers of rinna-3.6b's widths. The vocabulary is so small that the head has the share of a
/// pass that it has in 36 layers.
fn rinna_layers() -> Config {
    Config {
        vocab_size: 1792,
        hidden_size: 2816,
        num_hidden_layers: 2,
        num_attention_heads: 22,
        intermediate_size: 11_264,
        ..config()
    }
}

/// An engine over random values.
fn random_engine(config: Config, precision: Precision) -> Engine {
    let base = Base::made(config, precision, |name, shape| {
        let mut bits = 1_u32;
        let mut uniform = || {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (bits >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let values = (0..shape.iter().product()).map(|_| 0.03 * uniform());
        let is_linear = Target::ALL
            .iter()
            .any(|target| name.ends_with(&format!("{}.weight", target.path())));
        let form = if is_linear { precision } else { Precision::F32 };
        Weight::new(name, values.collect(), shape, Float::Bf16, form)
    });
    Engine::new(Arc::new(base.expect("a base"))).expect("an engine")
}

/// Eight records of 60 tokens, of which the last 12 are learned, as with `learn = "answer"`.
fn batch() -> Batch {
    let mut batch = Batch::new();
    for slot in 0..8 {
        let ids: Vec<u32> = (0..60).map(|i| (i * 37 + slot * 101) % 1500).collect();
        let labels: Vec<i32> = ids
            .iter()
            .enumerate()
            .map(|(i, &id)| if i < 48 { -100 } else { id as i32 })
            .collect();
        batch.push(&ids, &labels, slot);
    }
    batch
}

fn train(c: &mut Criterion) {
    let engine = engine();
    let batch = batch();
    let mut all = batch.clone();
    all.labels = all.ids.iter().map(|&id| id as i32).collect();
    let mut group = c.benchmark_group("train");
    group.throughput(Throughput::Elements(batch.tokens() as u64));
    for (name, targets, batch) in [
        (
            "query_key_value, answers",
            &[Target::QueryKeyValue][..],
            &batch,
        ),
        (
            "query_key_value, everything",
            &[Target::QueryKeyValue],
            &all,
        ),
        ("all four, everything", &Target::ALL, &all),
    ] {
        let settings = LoraConfig {
            rank: 8,
            alpha: 32.0,
            dropout: 0.1,
            targets: targets.to_vec(),
        };
        let lora = Lora::init(engine.config(), &settings, 1).expect("an adapter");
        let optimizer = AdamW::new(lora.len(), AdamWConfig::default());
        let mut training =
            Training::new(&engine, &lora, &optimizer, World::ALONE).expect("a training");
        let dropout = Dropout {
            p: 0.1,
            seed: 1,
            step: 1,
        };
        group.bench_function(name, |b| {
            b.iter(|| {
                training.accumulate(batch, Some(&dropout)).expect("a pass");
                training.step(1e-4, 1.0).expect("a step")
            });
        });
    }
    group.finish();
}

fn adapter(engine: &Engine) -> Adapter {
    let settings = LoraConfig {
        rank: 8,
        alpha: 32.0,
        dropout: 0.1,
        targets: vec![Target::QueryKeyValue],
    };
    let lora = Lora::init(engine.config(), &settings, 1).expect("an adapter");
    engine.adapter(&lora).expect("a loaded adapter")
}

fn decode(c: &mut Criterion) {
    let engine = engine();
    let adapter = adapter(&engine);
    let prompt: Vec<u32> = (0..40).collect();
    let options = Options {
        seed: 1,
        ..Options::default()
    };
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(64));
    group.bench_function("one sequence, 40 + 64 tokens", |b| {
        b.iter(|| {
            let mut cache = engine.cache();
            let mut sampler = Sampler::new(&options, &[], &prompt).expect("a sampler");
            let mut logits = engine
                .decode(&mut cache, &prompt, Some(&adapter))
                .expect("logits");
            for _ in 0..64 {
                let id = sampler.next(&mut logits).expect("a token");
                logits = engine
                    .decode(&mut cache, &[id], Some(&adapter))
                    .expect("logits");
            }
            black_box(logits);
        });
    });
    group.throughput(Throughput::Elements(8 * 16));
    group.bench_function("eight sequences, 40 + 16 tokens each", |b| {
        b.iter(|| {
            let mut caches: Vec<_> = (0..8).map(|_| engine.cache()).collect();
            for step in 0..=16 {
                let (ids, phase) = if step == 0 {
                    (prompt.as_slice(), Phase::Prefill)
                } else {
                    (&prompt[step..=step], Phase::Decode)
                };
                let steps = caches.iter_mut().map(|cache| Segment {
                    cache,
                    ids,
                    adapter: Some(&adapter),
                    phase,
                });
                black_box(
                    engine
                        .decode_batch(&mut steps.collect::<Vec<_>>())
                        .expect("logits"),
                );
            }
        });
    });
    group.finish();
}

/// The time in which `count` sequences write `tokens` tokens each, after prompts of 40 tokens.
fn write_answers(engine: &Engine, adapter: &Adapter, count: usize, tokens: Range<u32>) -> Duration {
    let prompt: Vec<u32> = (0..40).collect();
    let mut caches: Vec<Cache> = (0..count).map(|_| engine.cache()).collect();
    let pass = |caches: &mut [Cache], ids: &[u32], phase| {
        let segments = caches.iter_mut().map(|cache| Segment {
            cache,
            ids,
            adapter: Some(adapter),
            phase,
        });
        let logits = engine.decode_batch(&mut segments.collect::<Vec<_>>());
        black_box(logits.expect("logits"));
    };
    pass(&mut caches, &prompt, Phase::Prefill);
    let started = Instant::now();
    for id in tokens {
        pass(&mut caches, &[id], Phase::Decode);
    }
    started.elapsed()
}

/// Answers alone and eight at once, without their prompts.
fn answers(c: &mut Criterion) {
    for (name, config, precision, tokens) in [
        ("the demo's base", config(), Precision::F32, 64),
        (
            "2 layers of rinna-3.6b, int8",
            rinna_layers(),
            Precision::Int8,
            4,
        ),
        (
            "2 layers of rinna-3.6b, nf4",
            rinna_layers(),
            Precision::Nf4,
            4,
        ),
        (
            "2 layers of rinna-3.6b, bf16",
            rinna_layers(),
            Precision::Bf16,
            4,
        ),
    ] {
        // Made when it is measured, because a filter may leave it out.
        let made = LazyCell::new(|| {
            let engine = random_engine(config, precision);
            let adapter = adapter(&engine);
            (engine, adapter)
        });
        let mut group = c.benchmark_group("answers");
        group.sample_size(10);
        for count in [1, 8] {
            group.throughput(Throughput::Elements(u64::from(tokens) * count as u64));
            group.bench_function(format!("{name}, {count} at once"), |b| {
                let (engine, adapter) = &*made;
                b.iter_custom(|times| {
                    (0..times)
                        .map(|_| write_answers(engine, adapter, count, 0..tokens))
                        .sum()
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, train, decode, answers);
criterion_main!(benches);
