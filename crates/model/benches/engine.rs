//! Training and decoding speed on a random base of the demo's shape, and the kernels that are not
//! products.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use togi_model::optim::{AdamW, AdamWConfig};
use togi_model::sampling::{Options, Sampler};
use togi_model::{
    Activation, Base, Batch, Config, Dropout, Engine, Lora, LoraConfig, Phase, Segment, Target,
    Training, World, base,
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

fn decode(c: &mut Criterion) {
    let engine = engine();
    let settings = LoraConfig {
        rank: 8,
        alpha: 32.0,
        dropout: 0.1,
        targets: vec![Target::QueryKeyValue],
    };
    let lora = Lora::init(engine.config(), &settings, 1).expect("an adapter");
    let adapter = engine.adapter(&lora).expect("a loaded adapter");
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

criterion_group!(benches, train, decode);
criterion_main!(benches);
