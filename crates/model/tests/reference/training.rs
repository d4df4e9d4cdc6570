//! PEFT's gradients and initial values; fifty steps of torch's AdamW under transformers' schedule.

use serde::Deserialize;
use togi_model::optim::{AdamW, AdamWConfig, Schedule};
use togi_model::{Engine, Lora, LoraConfig, Target, Training, World};

use crate::fixtures::{self, Record, Tensors, assert_relative, path};

#[derive(Deserialize)]
struct Fixture {
    rank: usize,
    alpha: f64,
    batch: Vec<Record>,
    recipe: Recipe,
    records: Vec<Record>,
    steps: Vec<Step>,
    initial: Initial,
}

#[derive(Deserialize)]
struct Recipe {
    learning_rate: f64,
    warmup: u64,
    steps: u64,
    largest_norm: f64,
    batch_size: usize,
    accumulation: usize,
}

#[derive(Deserialize)]
struct Step {
    loss: f64,
    norm: f64,
    rate: f64,
    targets: u64,
}

#[derive(Deserialize)]
struct Initial {
    mean: f64,
    deviation: f64,
    largest: f64,
}

fn fixture() -> (Fixture, Tensors) {
    (
        fixtures::json("training.json"),
        fixtures::tensors(&path("training.safetensors")),
    )
}

/// A fresh adapter of the fixture's shape.
fn fresh(engine: &Engine, fixture: &Fixture, targets: &[Target], seed: u64) -> Lora {
    let config = LoraConfig {
        rank: fixture.rank,
        alpha: fixture.alpha,
        dropout: 0.0,
        targets: targets.to_vec(),
    };
    Lora::init(engine.config(), &config, seed).unwrap()
}

/// Sets every tensor to the fixture's with this prefix.
fn fill(lora: &mut Lora, tensors: &Tensors, prefix: &str) {
    for view in lora.views().collect::<Vec<_>>() {
        let (shape, values) = &tensors[&format!("{prefix}.{}", view.name)];
        assert_eq!(*shape, view.shape, "{}", view.name);
        lora.values_mut()[view.range].copy_from_slice(values);
    }
}

fn training<'a>(engine: &'a Engine, lora: &Lora) -> Training<'a> {
    let optimizer = AdamW::new(lora.len(), AdamWConfig::default());
    Training::new(engine, lora, &optimizer, World::ALONE).unwrap()
}

fn gradients_are_pefts(variant: &str, engine: &Engine) {
    let (fixture, tensors) = fixture();
    let batch = fixtures::batch(&fixture.batch);
    let alone = Target::ALL.map(|target| (target.name(), vec![target]));
    for (which, targets) in alone.into_iter().chain([("all", Target::ALL.to_vec())]) {
        let mut lora = fresh(engine, &fixture, &targets, 0);
        fill(&mut lora, &tensors, "values");
        let mut training = training(engine, &lora);
        training.accumulate(&batch, None).unwrap();
        let gradients = training.gradients().unwrap();
        assert_eq!(lora.views().count(), 4 * targets.len());
        for view in lora.views() {
            let name = format!("{variant}.{which}.{}", view.name);
            assert_relative(&gradients[view.range], &tensors[&name].1, 1e-4, &name);
        }
    }
}

#[test]
fn gradients_are_pefts_with_sequential_residuals() {
    gradients_are_pefts("sequential", &fixtures::tiny());
}

#[test]
fn gradients_are_pefts_with_parallel_residuals() {
    let engine = fixtures::variant(|config| {
        config.use_parallel_residual = true;
        config.rotary_pct = 0.25;
    });
    gradients_are_pefts("parallel", &engine);
}

#[test]
fn fifty_steps_are_those_of_torch() {
    let (fixture, tensors) = fixture();
    let engine = fixtures::tiny();
    let recipe = &fixture.recipe;
    let mut lora = fresh(&engine, &fixture, &Target::ALL, 0);
    fill(&mut lora, &tensors, "start");
    let mut training = training(&engine, &lora);
    let schedule = Schedule {
        base: recipe.learning_rate,
        warmup: recipe.warmup,
        total: recipe.steps,
    };
    let size = recipe.batch_size * recipe.accumulation;
    let windows = fixture.records.chunks(size);
    assert!(
        windows.clone().last().unwrap().len() < size,
        "a ragged window"
    );
    assert_eq!(fixture.steps.len(), 50);
    for (number, (window, want)) in windows.cycle().zip(&fixture.steps).enumerate() {
        for records in window.chunks(recipe.batch_size) {
            training
                .accumulate(&fixtures::batch(records), None)
                .unwrap();
        }
        let rate = schedule.lr(number as u64);
        let (loss, norm) = training.step(rate, recipe.largest_norm).unwrap();
        assert_eq!(loss.targets, want.targets, "step {number}");
        let difference = (loss.mean() - want.loss).abs();
        assert!(
            difference <= 1e-4,
            "step {number}: the loss differs by {difference:e}"
        );
        let difference = (norm / want.norm - 1.0).abs();
        assert!(
            difference <= 1e-3,
            "step {number}: the norm differs by {difference:e}"
        );
        let difference = (rate - want.rate).abs();
        assert!(
            difference <= 1e-12,
            "step {number}: the rate differs by {difference:e}"
        );
    }
    let lora = training.lora().unwrap();
    for view in lora.views() {
        let want = &tensors[&format!("end.{}", view.name)].1;
        assert_relative(&lora.values()[view.range], want, 1e-3, &view.name);
    }
}

#[test]
fn initial_values_are_spread_as_pefts() {
    let (fixture, _) = fixture();
    let engine = fixtures::tiny();
    let mut values = Vec::new();
    for seed in 0..40 {
        let lora = fresh(&engine, &fixture, &Target::ALL, seed);
        for view in lora.views() {
            let part = &lora.values()[view.range];
            if view.name.contains("lora_B") {
                assert!(part.iter().all(|value| *value == 0.0), "{}", view.name);
            } else {
                // In units of the bound that Kaiming's rule with a = √5 gives.
                let inputs = view.shape[1] as f64;
                values.extend(part.iter().map(|&value| f64::from(value) * inputs.sqrt()));
            }
        }
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let deviation = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt();
    let largest = values
        .iter()
        .fold(0.0f64, |largest, x| largest.max(x.abs()));
    let want = &fixture.initial;
    // Over four standard errors of the difference of two such means, and of the deviations.
    let error = 6.0 * want.deviation / count.sqrt();
    for (what, got, want) in [
        ("mean", mean, want.mean),
        ("deviation", deviation, want.deviation),
    ] {
        assert!((got - want).abs() < error, "{what} {got}, PEFT's {want}");
    }
    assert!(largest <= 1.0 + 1e-6 && want.largest <= 1.0 + 1e-6);
    assert!(
        (largest - want.largest).abs() < 1e-2,
        "largest {largest}, PEFT's {}",
        want.largest
    );
}
