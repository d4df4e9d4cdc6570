//! Training: losses fall, a resume changes no bit, and wrong inputs are refused.

use togi_model::optim::{AdamW, AdamWConfig, Schedule};
use togi_model::{Batch, Device, Dropout, Lora, Precision, Target, Training, World, memory};

use crate::support::{self, On, on_each_device};

on_each_device!(
    the_loss_falls_and_a_resumed_run_repeats_the_same_bits,
    a_training_of_parts_that_do_not_fit_is_refused,
);

/// Trains the step with this number.
fn step(training: &mut Training<'_>, batch: &Batch, number: u64, schedule: &Schedule) -> f64 {
    let dropout = Dropout {
        p: 0.05,
        seed: 1,
        step: number,
    };
    training.accumulate(batch, Some(&dropout)).unwrap();
    let (loss, _) = training.step(schedule.lr(number), 1.0).unwrap();
    loss.mean()
}

fn the_loss_falls_and_a_resumed_run_repeats_the_same_bits(on: &On) {
    let config = support::config();
    let engine = on.engine(&config);
    let batch = support::batch(&config, &[10, 12, 9]);
    let schedule = Schedule {
        base: 2e-2,
        warmup: 3,
        total: 40,
    };
    let start = Lora::init(&config, &support::lora_config(&Target::ALL), 1).unwrap();
    let base = engine.evaluate(None, &batch).unwrap().mean();
    assert_eq!(
        engine.evaluate(Some(&start), &batch).unwrap().mean(),
        base,
        "B is zero"
    );

    let mut training = support::training(&engine, &start);
    let losses: Vec<f64> = (0..40)
        .map(|number| step(&mut training, &batch, number, &schedule))
        .collect();
    assert!(losses[39] < 0.5 * losses[0], "{losses:?}");

    let mut again = start.clone();
    let mut state = AdamW::new(again.len(), AdamWConfig::default());
    for (number, loss) in losses.iter().enumerate() {
        // Everything is serialized and read back, as in a checkpoint.
        let bytes = (again.to_bytes(), state.to_bytes());
        again = start.clone();
        again.set_bytes(&bytes.0).unwrap();
        state = AdamW::from_bytes(&bytes.1, AdamWConfig::default()).unwrap();
        assert_eq!(state.steps(), number as u64);
        let mut resumed = Training::new(&engine, &again, &state, World::ALONE).unwrap();
        let repeated = step(&mut resumed, &batch, number as u64, &schedule);
        assert_eq!(loss.to_bits(), repeated.to_bits());
        (again, state) = (resumed.lora().unwrap(), resumed.optimizer().unwrap());
    }
    assert_eq!(again, training.lora().unwrap());
    assert_eq!(state, training.optimizer().unwrap());
}

fn a_training_of_parts_that_do_not_fit_is_refused(on: &On) {
    let config = support::config();
    let engine = on.engine(&config);
    let lora = support::lora(&config, &[Target::Dense]);
    let fresh = |len| AdamW::new(len, AdamWConfig::default());
    let refused = |lora: &Lora, len: usize, world: World| {
        assert!(Training::new(&engine, lora, &fresh(len), world).is_err());
    };
    refused(&lora, lora.len() - 1, World::ALONE);
    refused(&lora, lora.len(), World { rank: 0, size: 2 });
    refused(&lora, lora.len(), World { rank: 1, size: 1 });
    let wider = togi_model::Config {
        hidden_size: 48,
        ..config.clone()
    };
    let other = support::lora(&wider, &[Target::Dense]);
    refused(&other, other.len(), World::ALONE);
}

#[test]
fn broken_states_are_refused() {
    let state = AdamW::new(3, AdamWConfig::default()).to_bytes();
    for bad in [&state[..5], &state[..state.len() - 1], &state[1..], &[]] {
        assert!(AdamW::from_bytes(bad, AdamWConfig::default()).is_err());
    }
    let mut lora = support::lora(&support::config(), &[Target::Dense]);
    assert!(lora.set_bytes(&[0; 4]).is_err());
}

#[test]
fn the_schedule_warms_up_and_decays_to_zero() {
    let schedule = Schedule {
        base: 2.0,
        warmup: 4,
        total: 10,
    };
    let rates: Vec<f64> = (0..=10).map(|step| schedule.lr(step)).collect();
    let want: Vec<f64> = [
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
        5.0 / 6.0,
        4.0 / 6.0,
        0.5,
        2.0 / 6.0,
        1.0 / 6.0,
        0.0,
    ]
    .map(|x| 2.0 * x)
    .into();
    assert_eq!(rates.len(), want.len());
    assert!(
        rates.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-12),
        "{rates:?}"
    );
    assert_eq!(
        Schedule {
            base: 1.0,
            warmup: 0,
            total: 4
        }
        .lr(0),
        1.0
    );
    assert_eq!(schedule.lr(99), 0.0);
}

#[test]
fn initial_values_are_pefts_and_differ_by_tensor_and_seed() {
    let config = support::config();
    let lora = Lora::init(&config, &support::lora_config(&Target::ALL), 1).unwrap();
    let other = Lora::init(&config, &support::lora_config(&Target::ALL), 2).unwrap();
    assert_ne!(lora.values(), other.values());
    let mut firsts = Vec::new();
    for view in lora.views() {
        let values = &lora.values()[view.range];
        if view.name.contains("lora_B") {
            assert!(values.iter().all(|value| *value == 0.0));
        } else {
            let bound = 1.0 / (view.shape[1] as f32).sqrt();
            assert!(values.iter().all(|value| value.abs() <= bound));
            assert!(values.iter().any(|value| value.abs() > 0.9 * bound));
            firsts.push(values[0].to_bits());
        }
    }
    firsts.sort_unstable();
    firsts.dedup();
    assert_eq!(firsts.len(), 8);
    assert_eq!(
        lora.len() as u64,
        memory::trainable(&config, &support::lora_config(&Target::ALL))
    );
}

#[test]
fn lora_settings_out_of_range_are_refused_by_name() {
    let config = support::config();
    let good = support::lora_config(&[Target::Dense]);
    let cases = [
        (
            "rank",
            togi_model::LoraConfig {
                rank: 0,
                ..good.clone()
            },
        ),
        (
            "rank",
            togi_model::LoraConfig {
                rank: 25,
                ..good.clone()
            },
        ),
        (
            "alpha",
            togi_model::LoraConfig {
                alpha: f64::NAN,
                ..good.clone()
            },
        ),
        (
            "alpha",
            togi_model::LoraConfig {
                alpha: 0.0,
                ..good.clone()
            },
        ),
        (
            "dropout",
            togi_model::LoraConfig {
                dropout: 1.0,
                ..good.clone()
            },
        ),
        (
            "dropout",
            togi_model::LoraConfig {
                dropout: f64::NAN,
                ..good.clone()
            },
        ),
        (
            "target_modules",
            togi_model::LoraConfig {
                targets: vec![],
                ..good.clone()
            },
        ),
        (
            "target_modules",
            togi_model::LoraConfig {
                targets: vec![Target::Dense; 2],
                ..good
            },
        ),
    ];
    for (expected, lora) in cases {
        let Err(togi_model::Error::Field { field, .. }) = lora.validate(&config) else {
            panic!("{lora:?} passed");
        };
        assert_eq!(field, expected);
    }
}

#[test]
fn the_memory_plan_counts_what_is_there() {
    let config = support::config();
    let lora = support::lora_config(&[Target::QueryKeyValue]);
    let lora_values = memory::trainable(&config, &lora);
    let plan = |tokens| memory::plan(&config, &lora, tokens, Precision::F32, Device::Cpu);
    let larger = plan(200);
    let plan = plan(100);
    assert_eq!(plan.weights, 4 * config.parameters());
    assert_eq!(
        [plan.values, plan.gradients, plan.moments],
        [1, 1, 2].map(|n| n * 4 * lora_values)
    );
    assert!(larger.activations > plan.activations);
    assert_eq!(
        plan.total(),
        plan.weights + plan.values + plan.gradients + plan.moments + plan.activations
    );
}
