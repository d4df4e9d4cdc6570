//! A window's gradient: every learned target weighs the same, in whichever batch or record it stands.

use togi_model::{Batch, Dropout, Target, Window, WindowLoss, optim};

use crate::support;

const DROPOUT: Dropout = Dropout {
    p: 0.2,
    seed: 3,
    step: 8,
};

/// Loss, norm and gradient of these batches as one window.
fn window(batches: Vec<Batch>, largest_norm: f64) -> (WindowLoss, f64, Vec<f32>) {
    let config = support::config();
    let engine = support::engine(&config);
    let lora = support::lora(&config, &Target::ALL);
    // Not zero: what was there before must not count.
    let mut gradients = vec![7.0; lora.len()];
    let window = Window {
        lora: &lora,
        dropout: Some(&DROPOUT),
        largest_norm,
    };
    let (loss, norm) = window.gradient(&engine, batches, &mut gradients).unwrap();
    (loss, norm, gradients)
}

/// Records with very different counts of learned targets.
fn records() -> Batch {
    support::batch(&support::config(), &[30, 2, 3, 12, 4])
}

#[test]
fn accumulation_weighs_targets_and_not_batches() {
    let packed = window(vec![records()], 0.0);
    let single = window(support::one_by_one(&records()), 0.0);
    assert_eq!(packed.0.targets, single.0.targets);
    assert!((packed.0.mean() / single.0.mean() - 1.0).abs() < 1e-5);
    support::assert_close(&single.2, &packed.2, 1e-5, "gradient");

    // The mean of the batches' means, which a trainer that divides early would take, is something else.
    let means: Vec<_> = support::one_by_one(&records())
        .into_iter()
        .map(|record| window(vec![record], 0.0))
        .collect();
    let mean_of_means = means.iter().map(|(loss, ..)| loss.mean()).sum::<f64>() / 5.0;
    assert!((mean_of_means / packed.0.mean() - 1.0).abs() > 1e-2);
}

#[test]
fn a_window_is_clipped_once_and_tells_the_norm_before() {
    let (_, norm, whole) = window(support::one_by_one(&records()), 0.0);
    let (_, told, clipped) = window(support::one_by_one(&records()), norm / 4.0);
    assert_eq!(told.to_bits(), norm.to_bits());
    assert!((optim::norm(&clipped) / norm - 0.25).abs() < 1e-4);
    let quarter: Vec<f32> = whole.iter().map(|gradient| gradient / 4.0).collect();
    support::assert_close(&clipped, &quarter, 1e-4, "direction");
}

#[test]
fn a_window_without_targets_has_no_gradient() {
    let mut batch = records();
    batch.labels.fill(-100);
    let (loss, norm, gradients) = window(vec![batch], 1.0);
    assert_eq!((loss, norm), (WindowLoss::default(), 0.0));
    assert!(gradients.iter().all(|gradient| *gradient == 0.0));
}
