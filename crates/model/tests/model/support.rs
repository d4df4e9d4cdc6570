//! Small random models, adapters and batches.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use togi_model::optim::{AdamW, AdamWConfig};
use togi_model::{
    Activation, Base, Batch, Config, Dropout, Engine, Lora, LoraConfig, Target, Training,
    WindowLoss, World, base,
};

/// A model small enough for central differences.
pub(crate) fn config() -> Config {
    Config {
        vocab_size: 37,
        hidden_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        intermediate_size: 40,
        hidden_act: Activation::Gelu,
        rotary_pct: 1.0,
        rotary_emb_base: 10_000.0,
        max_position_embeddings: 64,
        layer_norm_eps: 1e-5,
        use_parallel_residual: false,
        tie_word_embeddings: false,
        attention_bias: true,
        bos_token_id: Some(2),
        eos_token_id: Some(3),
        pad_token_id: None,
    }
}

/// Uniform numbers in ±`bound`.
pub(crate) fn uniform(rng: &mut ChaCha8Rng, count: usize, bound: f32) -> Vec<f32> {
    (0..count)
        .map(|_| rng.random_range(-bound..bound))
        .collect()
}

pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// A base folder with weights far from what training starts with, so that no term of a gradient is hidden: biases and gains
/// are random.
pub(crate) fn folder(config: &Config) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    base::write(dir.path(), config, |name, count| {
        let mut rng = rng(name
            .bytes()
            .fold(7, |seed, byte| seed * 31 % 1_000_003 + u64::from(byte)));
        let (bound, centre) = if name.contains("norm.weight") {
            (0.3, 1.0)
        } else {
            (0.25, 0.0)
        };
        uniform(&mut rng, count, bound)
            .into_iter()
            .map(|value| value + centre)
            .collect()
    })
    .unwrap();
    dir
}

/// An engine over [`folder`]'s base in f32.
pub(crate) fn engine(config: &Config) -> Engine {
    Engine::new(Arc::new(Base::load(folder(config).path()).unwrap())).unwrap()
}

pub(crate) fn lora_config(targets: &[Target]) -> LoraConfig {
    LoraConfig {
        rank: 4,
        alpha: 8.0,
        dropout: 0.0,
        targets: targets.to_vec(),
    }
}

/// An adapter whose B is not zero.
pub(crate) fn lora(config: &Config, targets: &[Target]) -> Lora {
    let mut lora = Lora::init(config, &lora_config(targets), 11).unwrap();
    let mut rng = rng(5);
    for view in lora.views().collect::<Vec<_>>() {
        if view.name.contains("lora_B") {
            let values = uniform(&mut rng, view.range.len(), 0.2);
            lora.values_mut()[view.range].copy_from_slice(&values);
        }
    }
    lora
}

/// Records of these lengths; every fifth label is not learned.
pub(crate) fn batch(config: &Config, lens: &[usize]) -> Batch {
    let mut rng = rng(3);
    let mut batch = Batch::new();
    for (slot, &len) in lens.iter().enumerate() {
        let ids: Vec<u32> = (0..len)
            .map(|_| rng.random_range(0..config.vocab_size as u32))
            .collect();
        let label = |(place, &id): (usize, &u32)| if place % 5 == 4 { -100 } else { id as i32 };
        let labels: Vec<i32> = ids.iter().enumerate().map(label).collect();
        batch.push(&ids, &labels, slot as u32);
    }
    batch
}

/// A training of an adapter from its first step on.
pub(crate) fn training<'a>(engine: &'a Engine, lora: &Lora) -> Training<'a> {
    let optimizer = AdamW::new(lora.len(), AdamWConfig::default());
    Training::new(engine, lora, &optimizer, World::ALONE).unwrap()
}

/// The loss of these batches together, and the gradient of its sum.
pub(crate) fn learn(
    engine: &Engine,
    lora: &Lora,
    batches: &[Batch],
    dropout: Option<&Dropout>,
) -> (WindowLoss, Vec<f32>) {
    let mut training = training(engine, lora);
    for batch in batches {
        training.accumulate(batch, dropout).unwrap();
    }
    (training.loss().unwrap(), training.gradients().unwrap())
}

/// The batch's records as batches of one.
pub(crate) fn one_by_one(batch: &Batch) -> Vec<Batch> {
    let ranges = batch
        .starts
        .windows(2)
        .map(|pair| pair[0] as usize..pair[1] as usize);
    ranges
        .zip(&batch.slots)
        .map(|(range, &slot)| {
            let mut single = Batch::new();
            single.push(&batch.ids[range.clone()], &batch.labels[range], slot);
            single
        })
        .collect()
}

/// Asserts that two vectors agree relative to the larger one's length.
pub(crate) fn assert_close(got: &[f32], want: &[f32], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(want).map(|(a, b)| f64::from(a - b)));
    let scale = norm(&mut want.iter().map(|&x| f64::from(x))).max(1e-12);
    assert!(
        difference <= tolerance * scale,
        "{what}: off by {:e} of its length {scale:e}",
        difference / scale
    );
}
