//! A window's gradient: every target has the same weight, whatever its batch and record.

use togi_model::optim::{AdamW, AdamWConfig};
use togi_model::{Batch, Dropout, Lora, Target, Training, WindowLoss};

use crate::support::{self, On, on_each_device};

on_each_device!(
    accumulation_weighs_targets_and_not_batches,
    a_window_without_targets_has_no_gradient,
    a_step_that_is_not_finite_is_told_and_not_taken,
);

const DROPOUT: Dropout = Dropout {
    p: 0.2,
    seed: 3,
    step: 8,
};

/// Accumulates these batches and passes the training, before its step, to `then`.
fn window<T>(on: &On, batches: &[Batch], then: impl FnOnce(Training<'_>) -> T) -> T {
    let config = support::config();
    let engine = on.engine(&config);
    let mut training = support::training(&engine, &support::lora(&config, &Target::ALL));
    for batch in batches {
        training.accumulate(batch, Some(&DROPOUT)).unwrap();
    }
    then(training)
}

fn learned(on: &On, batches: &[Batch]) -> (WindowLoss, Vec<f32>) {
    window(on, batches, |training| {
        (training.loss().unwrap(), training.gradients().unwrap())
    })
}

/// Returns records with very different numbers of targets.
fn records() -> Batch {
    support::batch(&support::config(), &[30, 2, 3, 12, 4])
}

fn accumulation_weighs_targets_and_not_batches(on: &On) {
    let packed = learned(on, &[records()]);
    let single = learned(on, &support::one_by_one(&records()));
    assert_eq!(packed.0.targets, single.0.targets);
    on.assert_same(packed.0.mean(), single.0.mean(), "mean");
    support::assert_close(&single.1, &packed.1, on.tolerance, "gradient");

    // The mean of the batches' means differs; a trainer that divides too early would return it.
    let means = support::one_by_one(&records())
        .into_iter()
        .map(|record| learned(on, &[record]).0.mean());
    let mean_of_means = means.sum::<f64>() / 5.0;
    assert!((mean_of_means / packed.0.mean() - 1.0).abs() > 1e-2);
}

#[test]
fn a_window_is_divided_and_clipped_once_and_tells_the_norm_before() {
    let batches = support::one_by_one(&records());
    let (loss, gradients) = learned(&On::CPU, &batches);
    let mean: Vec<f32> = gradients
        .iter()
        .map(|gradient| gradient * (1.0 / loss.targets as f32))
        .collect();
    let norm = l2_norm(&mean);
    // After one step the first moment is a tenth of the gradient that the step used.
    let stepped = |largest: f64| {
        window(&On::CPU, &batches, |mut training| {
            let (told_loss, told) = training.step(1e-3, largest).unwrap();
            assert_eq!((told_loss, told.to_bits()), (loss, norm.to_bits()));
            assert!(training.gradients().unwrap().iter().all(|g| *g == 0.0));
            assert_eq!(training.loss().unwrap(), WindowLoss::default());
            (training.lora().unwrap(), training.optimizer().unwrap())
        })
    };
    let by_hand = |gradients: &[f32]| {
        let mut lora = support::lora(&support::config(), &Target::ALL);
        let optimizer = first_step(&mut lora, gradients, 1e-3);
        (lora, optimizer)
    };
    assert_eq!(stepped(0.0), by_hand(&mean));
    assert_eq!(stepped(2.0 * norm), by_hand(&mean));
    // This is the scaling of torch's `clip_grad_norm_`.
    let factor = (norm / 4.0 / (norm + 1e-6)) as f32;
    let clipped: Vec<f32> = mean.iter().map(|gradient| factor * gradient).collect();
    assert!((l2_norm(&clipped) / norm - 0.25).abs() < 1e-4);
    assert_eq!(stepped(norm / 4.0), by_hand(&clipped));
}

fn l2_norm(values: &[f32]) -> f64 {
    let squares = values.iter().map(|&value| f64::from(value).powi(2));
    squares.sum::<f64>().sqrt()
}

/// Takes AdamW's first step and returns its state, which a device must match bit for bit.
fn first_step(lora: &mut Lora, gradients: &[f32], rate: f64) -> AdamW {
    let config = AdamWConfig::default();
    let first: Vec<f32> = gradients
        .iter()
        .map(|gradient| (1.0 - config.beta1) as f32 * gradient)
        .collect();
    let second: Vec<f32> = gradients
        .iter()
        .map(|gradient| (1.0 - config.beta2) as f32 * gradient * gradient)
        .collect();
    let rate = (rate / (1.0 - config.beta1)) as f32;
    let root = (1.0 / (1.0 - config.beta2).sqrt()) as f32;
    for ((value, m), v) in lora.values_mut().iter_mut().zip(&first).zip(&second) {
        *value -= rate * m / (v.sqrt() * root + config.eps as f32);
    }
    let mut state = b"togiadw1".to_vec();
    state.extend(1_u64.to_le_bytes());
    state.extend((gradients.len() as u64).to_le_bytes());
    state.extend(
        first
            .iter()
            .chain(&second)
            .flat_map(|moment| moment.to_le_bytes()),
    );
    AdamW::from_bytes(&state, config).unwrap()
}

fn a_window_without_targets_has_no_gradient(on: &On) {
    let mut batch = records();
    batch.labels.fill(-100);
    window(on, &[batch], |mut training| {
        assert!(training.gradients().unwrap().iter().all(|g| *g == 0.0));
        let told = training.step(1e-3, 1.0).unwrap();
        assert_eq!(told, (WindowLoss::default(), 0.0));
    });
}

fn a_step_that_is_not_finite_is_told_and_not_taken(on: &On) {
    let config = support::config();
    let engine = on.engine(&config);
    let mut lora = support::lora(&config, &[Target::Dense]);
    lora.values_mut()[3] = f32::NAN;
    let mut training = support::training(&engine, &lora);
    training.accumulate(&records(), None).unwrap();
    let (loss, norm) = training.step(1e-3, 1.0).unwrap();
    assert!(!loss.sum.is_finite() && !norm.is_finite());
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(training.lora().unwrap().values()), bits(lora.values()));
    assert_eq!(training.optimizer().unwrap().steps(), 0);
}
