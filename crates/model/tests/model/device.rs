//! Every device agrees with the CPU in f32: losses, each gradient, steps, decoding. Without a GPU
//! these tests print that they are skipped.

use std::sync::Arc;

use togi_model::{
    Base, Batch, Config, Device, Dropout, Engine, Float, Lora, LoraConfig, Phase, Precision,
    Segment, Target,
};

use crate::support;

/// Engines on a GPU and on the CPU over the same base, with the error that the float type allows.
struct Pair {
    cpu: Engine,
    gpu: Engine,
    /// Relative error of a loss or a tensor.
    tolerance: f64,
    /// Largest angle between gradients, as 1 − cosine. It is used for a quantized base in 16 bits,
    /// where each weight is rounded twice.
    angle: Option<f64>,
}

/// Rounds to the nearest bf16.
fn rounded(value: f32) -> f32 {
    Float::Bf16.round(value)
}

/// Writes weights that are exact in bf16, so that GPU and CPU start equal. Their magnitude keeps
/// the scale of activations constant.
fn folder(config: &Config) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let plain = Base::load(support::folder(config).path()).unwrap();
    let shrink = (24.0 / config.hidden_size as f32).sqrt();
    togi_model::base::write(dir.path(), config, |name, _| {
        let values: Vec<f32> = plain
            .tensor(name)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        let factor = if name.contains("norm") { 1.0 } else { shrink };
        values
            .into_iter()
            .map(|value| rounded(value * factor))
            .collect()
    })
    .unwrap();
    dir
}

/// Returns an adapter whose values are exact in bf16.
fn lora(config: &Config, targets: &[Target]) -> Lora {
    rounded_lora(support::lora(config, targets))
}

fn rounded_lora(mut lora: Lora) -> Lora {
    lora.values_mut()
        .iter_mut()
        .for_each(|value| *value = rounded(*value));
    lora
}

/// Runs a test on the first GPU, once in each float type.
fn on_the_card(config: &Config, precision: Precision, test: impl Fn(&Pair)) {
    if !support::has_card() {
        return;
    }
    let folder = folder(config);
    let base = Arc::new(Base::load_as(folder.path(), precision).unwrap());
    // The CPU computes in f32 over the quantized base's values.
    let full = tempfile::tempdir().unwrap();
    togi_model::base::write(full.path(), config, |name, _| {
        let tensor = base.weight(name).unwrap().dequantized().unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    })
    .unwrap();
    let plain = Arc::new(Base::load(full.path()).unwrap());
    for (float, tolerance) in [(Float::F32, 1e-3), (Float::Bf16, 2e-2), (Float::Fp16, 2e-2)] {
        let gpu = support::On::gpu(float).over(base.clone());
        test(&Pair {
            cpu: Engine::new(plain.clone()).unwrap(),
            gpu,
            tolerance,
            angle: (precision != Precision::F32 && float != Float::F32).then_some(0.01),
        });
    }
}

/// Wide enough for vectorized kernels, with records longer than an attention tile.
fn wide() -> Config {
    Config {
        vocab_size: 600,
        hidden_size: 192,
        num_attention_heads: 3,
        intermediate_size: 768,
        max_position_embeddings: 256,
        ..support::config()
    }
}

fn shapes() -> [Config; 4] {
    [
        support::config(),
        Config {
            use_parallel_residual: true,
            rotary_pct: 0.25,
            ..support::config()
        },
        wide(),
        Config {
            hidden_size: 256,
            num_attention_heads: 2,
            use_parallel_residual: true,
            tie_word_embeddings: true,
            rotary_pct: 0.5,
            ..wide()
        },
    ]
}

fn records(config: &Config) -> Batch {
    let lens: &[usize] = match config.max_position_embeddings {
        256 => &[60, 1, 200, 64, 130],
        _ => &[9, 1, 17, 4],
    };
    support::batch(config, lens)
}

const DROPOUT: Dropout = Dropout {
    p: 0.1,
    seed: 4,
    step: 7,
};

/// Returns the distance of two vectors, relative to the length of `want`.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let apart: f64 = got
        .iter()
        .zip(want)
        .map(|(a, b)| square(f64::from(a - b)))
        .sum();
    let length: f64 = want.iter().map(|&x| square(x.into())).sum();
    (apart / length.max(1e-24)).sqrt()
}

fn close_gradients(pair: &Pair, lora: &Lora, batches: &[Batch], dropout: Option<&Dropout>) {
    let (want_loss, want) = support::learn(&pair.cpu, lora, batches, dropout);
    let (loss, got) = support::learn(&pair.gpu, lora, batches, dropout);
    assert_eq!(loss.targets, want_loss.targets);
    let off = (loss.sum / want_loss.sum - 1.0).abs();
    assert!(off < pair.tolerance, "the loss is off by {off:e}");
    let mut worst = (0.0, String::new());
    for view in lora.views() {
        let (got, want) = (&got[view.range.clone()], &want[view.range.clone()]);
        let apart = match pair.angle {
            Some(_) => 1.0 - support::cosine(got, want),
            None => distance(got, want),
        };
        if apart.is_nan() || apart > worst.0 {
            worst = (apart, view.name);
        }
    }
    let all = distance(&got, &want);
    eprintln!("worst gradient: {worst:?}; all: {all:e}; loss: {off:e}");
    let most = pair.angle.unwrap_or(pair.tolerance);
    assert!(worst.0 < most, "{worst:?}");
    // A repeated run has the same bits.
    assert_eq!(
        (loss, got),
        support::learn(&pair.gpu, lora, batches, dropout)
    );
}

#[test]
fn gradients_are_the_cpus() {
    for config in shapes() {
        on_the_card(&config, Precision::F32, |pair| {
            let lora = lora(&config, &Target::ALL);
            close_gradients(pair, &lora, &[records(&config)], None);
        });
    }
}

#[test]
fn gradients_under_dropout_are_the_cpus() {
    for config in shapes() {
        on_the_card(&config, Precision::F32, |pair| {
            let lora = lora(&config, &[Target::QueryKeyValue, Target::Dense4hToH]);
            let batches = support::one_by_one(&records(&config));
            close_gradients(pair, &lora, &batches, Some(&DROPOUT));
        });
    }
}

/// Covers the ranks with compiled kernels, and one without.
#[test]
fn gradients_of_every_rank_are_the_cpus() {
    let config = wide();
    for rank in [8, 12, 16, 32, 64] {
        on_the_card(&config, Precision::F32, |pair| {
            let settings = LoraConfig {
                rank,
                ..support::lora_config(&Target::ALL)
            };
            let lora = rounded_lora(support::lora_of(&config, &settings));
            close_gradients(pair, &lora, &[records(&config)], Some(&DROPOUT));
        });
    }
}

#[test]
fn gradients_over_quantized_weights_are_those_over_their_values() {
    for precision in [Precision::Nf4, Precision::Int8, Precision::Fp8] {
        for config in [support::config(), wide()] {
            let config = Config {
                num_hidden_layers: 3,
                ..config
            };
            on_the_card(&config, precision, |pair| {
                let lora = lora(&config, &Target::ALL);
                close_gradients(pair, &lora, &[records(&config)], Some(&DROPOUT));
            });
        }
    }
}

#[test]
fn steps_are_the_cpus() {
    let config = wide();
    on_the_card(&config, Precision::F32, |pair| {
        let lora = lora(&config, &Target::ALL);
        let run = |engine: &Engine| {
            let mut training = support::training(engine, &lora);
            let told: Vec<_> = (0..5)
                .map(|step| {
                    let dropout = Dropout { step, ..DROPOUT };
                    training
                        .accumulate(&records(&config), Some(&dropout))
                        .unwrap();
                    training.step(1e-3, 1.0).unwrap()
                })
                .collect();
            (
                told,
                training.lora().unwrap(),
                training.optimizer().unwrap(),
            )
        };
        let (want, want_lora, _) = run(&pair.cpu);
        let (got, lora, optimizer) = run(&pair.gpu);
        for ((loss, norm), (want_loss, want_norm)) in got.iter().zip(&want) {
            assert!((loss.mean() / want_loss.mean() - 1.0).abs() < pair.tolerance);
            assert!((norm / want_norm - 1.0).abs() < pair.tolerance);
        }
        assert_eq!(optimizer.steps(), 5);
        support::assert_close(lora.values(), want_lora.values(), pair.tolerance, "values");
        let again = run(&pair.gpu);
        assert_eq!((got, lora, optimizer), again);
    });
}

#[test]
fn decoding_is_the_cpus_alone_and_beside_others() {
    for config in shapes() {
        decodes_as_the_cpu(&config, &lora(&config, &Target::ALL));
    }
}

#[test]
fn an_adapter_that_is_copied_in_several_parts_is_whole() {
    let config = wide();
    let settings = LoraConfig {
        rank: config.hidden_size,
        ..support::lora_config(&Target::ALL)
    };
    let lora = rounded_lora(support::lora_of(&config, &settings));
    // In 16 bits too, more than twice the part that is copied at once.
    assert!(lora.len() > 1 << 20);
    decodes_as_the_cpu(&config, &lora);
}

fn decodes_as_the_cpu(config: &Config, lora: &Lora) {
    on_the_card(config, Precision::F32, |pair| {
        let ids: Vec<u32> = (0..40).map(|i| i * 7 % 37).collect();
        let [want, got] = [&pair.cpu, &pair.gpu].map(|engine| {
            let adapter = engine.adapter(lora).unwrap();
            let mut logits = engine.logits(&ids, Some(&adapter)).unwrap();
            let mut caches = [engine.cache(), engine.cache()];
            for (split, phase) in [
                (0..30, Phase::Prefill),
                (30..31, Phase::Decode),
                (31..32, Phase::Decode),
            ] {
                let [one, two] = &mut caches;
                let steps = &mut [
                    Segment {
                        cache: one,
                        ids: &ids[split.clone()],
                        adapter: Some(&adapter),
                        phase,
                    },
                    Segment {
                        cache: two,
                        ids: &ids[split.start / 2..split.end / 2 + 1],
                        adapter: None,
                        phase: Phase::Prefill,
                    },
                ];
                logits.extend(engine.decode_batch(steps).unwrap().concat());
            }
            logits
        });
        support::assert_close(&got, &want, pair.tolerance, "logits");
    });
}

#[test]
fn a_card_that_is_not_there_is_an_error() {
    let base = Arc::new(Base::load(support::folder(&support::config()).path()).unwrap());
    let device = Device::Cuda {
        ordinal: 99,
        float: Float::Bf16,
    };
    let error = Engine::on(base, device).err().unwrap().to_string();
    assert!(error.starts_with("device cuda"), "{error}");
}
