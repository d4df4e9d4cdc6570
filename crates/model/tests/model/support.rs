//! Small random models, adapters and batches, and the devices that tests run on.

use std::sync::{Arc, OnceLock};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use togi_model::optim::{AdamW, AdamWConfig};
use togi_model::{
    Activation, Base, Batch, Config, Device, Dropout, Engine, Float, Lora, LoraConfig, Target,
    Training, WindowLoss, World, base,
};

/// Makes a test of a function for each device: `NAME::cpu`, and with the feature `cuda` also
/// `NAME::cuda_f32`, `NAME::cuda_bf16` and `NAME::cuda_fp16`. These run on the first GPU, or print
/// that they are skipped.
macro_rules! on_each_device {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn cpu() {
                super::$name(&$crate::support::On::CPU);
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn cuda_f32() {
                $crate::support::on_the_card(togi_model::Float::F32, super::$name);
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn cuda_bf16() {
                $crate::support::on_the_card(togi_model::Float::Bf16, super::$name);
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn cuda_fp16() {
                $crate::support::on_the_card(togi_model::Float::Fp16, super::$name);
            }
        }
    )+};
}

/// Like `on_each_device`, without the 16-bit types, which are too coarse for some tests.
macro_rules! on_each_device_in_f32 {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn cpu() {
                super::$name(&$crate::support::On::CPU);
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn cuda_f32() {
                $crate::support::on_the_card(togi_model::Float::F32, super::$name);
            }
        }
    )+};
}

pub(crate) use on_each_device;
pub(crate) use on_each_device_in_f32;

/// A test's device and float type.
pub(crate) struct On {
    device: Device,
    /// Largest relative distance between two computations of the same result.
    pub(crate) tolerance: f64,
}

impl On {
    pub(crate) const CPU: Self = Self {
        device: Device::Cpu,
        tolerance: 1e-5,
    };

    pub(crate) fn gpu(float: Float) -> Self {
        Self {
            device: Device::Cuda { ordinal: 0, float },
            tolerance: match float {
                Float::F32 => 1e-4,
                Float::Bf16 | Float::Fp16 => 3e-2,
            },
        }
    }

    pub(crate) fn over(&self, base: Arc<Base>) -> Engine {
        Engine::on(base, self.device).unwrap()
    }

    /// Returns an engine over [`folder`]'s base.
    pub(crate) fn engine(&self, config: &Config) -> Engine {
        self.over(Arc::new(Base::load(folder(config).path()).unwrap()))
    }

    /// Asserts that gradients over a precision and over its values in f32 differ only by rounding.
    /// In 16 bits, where the values are not exact, compares the angle.
    pub(crate) fn assert_same_gradients(&self, got: &[f32], want: &[f32]) {
        match self.device {
            Device::Cuda {
                float: Float::Bf16 | Float::Fp16,
                ..
            } => assert!(cosine(got, want) > 0.99),
            _ => assert_close(got, want, self.tolerance / 10.0, "gradients"),
        }
    }

    /// Asserts that two numbers differ only by rounding.
    pub(crate) fn assert_same(&self, a: f64, b: f64, what: &str) {
        let apart = (a / b - 1.0).abs();
        assert!(apart < self.tolerance, "{what}: {a} and {b}");
    }
}

/// Returns whether there is a GPU. Without one, prints a note, or fails if `TOGI_NEEDS_CUDA` is
/// set.
pub(crate) fn has_card() -> bool {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let missing = MISSING.get_or_init(|| {
        let base = Arc::new(Base::load(folder(&config()).path()).unwrap());
        let tried = Engine::on(base, On::gpu(Float::F32).device);
        tried.err().map(|error| error.to_string())
    });
    let Some(reason) = missing else { return true };
    let needed = std::env::var_os("TOGI_NEEDS_CUDA").is_some();
    assert!(!needed, "{reason}");
    eprintln!("SKIPPED, no GPU: {reason}");
    false
}

/// Runs a test on the first GPU; does nothing without one.
#[cfg(feature = "cuda")]
pub(crate) fn on_the_card(float: Float, test: impl FnOnce(&On)) {
    if has_card() {
        test(&On::gpu(float));
    }
}

/// Returns a model small enough for central differences.
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
        attention_dropout: 0.0,
        hidden_dropout: 0.0,
        bos_token_id: Some(2),
        eos_token_ids: vec![3],
        pad_token_id: None,
    }
}

/// Like [`config`], with a layer that is neither first nor last, the only one that fp8 quantizes.
pub(crate) fn deep() -> Config {
    Config {
        num_hidden_layers: 3,
        ..config()
    }
}

/// Returns uniform numbers in ±`bound`.
pub(crate) fn uniform(rng: &mut ChaCha8Rng, count: usize, bound: f32) -> Vec<f32> {
    (0..count)
        .map(|_| rng.random_range(-bound..bound))
        .collect()
}

pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Writes a base with random biases and gains, so that no term of a gradient vanishes.
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

/// Returns an engine over [`folder`]'s base in f32, on the CPU.
pub(crate) fn engine(config: &Config) -> Engine {
    On::CPU.engine(config)
}

pub(crate) fn lora_config(targets: &[Target]) -> LoraConfig {
    LoraConfig {
        rank: 4,
        alpha: 8.0,
        dropout: 0.0,
        targets: targets.to_vec(),
    }
}

/// Returns an adapter whose B is not zero.
pub(crate) fn lora(config: &Config, targets: &[Target]) -> Lora {
    lora_of(config, &lora_config(targets))
}

/// Like [`lora`], with other settings.
pub(crate) fn lora_of(config: &Config, settings: &LoraConfig) -> Lora {
    let mut lora = Lora::init(config, settings, 11).unwrap();
    let mut rng = rng(5);
    for view in lora.views().collect::<Vec<_>>() {
        if view.name.contains("lora_B") {
            let values = uniform(&mut rng, view.range.len(), 0.2);
            lora.values_mut()[view.range].copy_from_slice(&values);
        }
    }
    lora
}

/// Returns records of these lengths; every fifth label is not a target.
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

/// Starts training an adapter at its first step.
pub(crate) fn training<'a>(engine: &'a Engine, lora: &Lora) -> Training<'a> {
    let optimizer = AdamW::new(lora.len(), AdamWConfig::default());
    Training::new(engine, lora, &optimizer, World::ALONE).unwrap()
}

/// Returns the total loss of these batches, and the gradient of the loss sum.
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

/// Splits a batch into batches of one record.
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

/// Returns the cosine of the angle between two vectors.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-24)
}

/// Asserts that two vectors agree, relative to the length of the larger one.
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
