//! Gradients against central differences, and which tensors have gradients.

use togi_model::{Config, Dropout, Target};

use crate::support::{self, On, on_each_device, on_each_device_in_f32};

on_each_device!(
    every_trainable_tensor_has_a_gradient_that_is_finite_and_not_zero,
    gradients_add_up_and_bad_batches_leave_them_alone,
    a_batch_without_targets_has_no_loss_and_no_gradient,
);
on_each_device_in_f32!(gradients_are_the_slopes_of_the_loss);

fn gradients_are_the_slopes_of_the_loss(on: &On) {
    for use_parallel_residual in [false, true] {
        for rotary_pct in [1.0, 0.25] {
            let config = Config {
                use_parallel_residual,
                rotary_pct,
                ..support::config()
            };
            let engine = on.engine(&config);
            let mut lora = support::lora(&config, &Target::ALL);
            let batch = support::batch(&config, &[6, 9]);
            // Dropout can be included because its mask does not depend on the values.
            let dropout = Dropout {
                p: 0.25,
                seed: 9,
                step: 4,
            };
            let batches = [batch];
            let (_, grads) = support::learn(&engine, &lora, &batches, Some(&dropout));
            for view in lora.views().collect::<Vec<_>>() {
                // Step along the tensor's gradient, where the difference is largest relative to
                // rounding.
                let direction = grads[view.range.clone()].to_vec();
                let length = direction
                    .iter()
                    .map(|&g| f64::from(g) * f64::from(g))
                    .sum::<f64>()
                    .sqrt();
                let start = lora.values()[view.range.clone()].to_vec();
                let step = 2e-2;
                let mut at = |distance: f64| {
                    for ((value, start), slope) in lora.values_mut()[view.range.clone()]
                        .iter_mut()
                        .zip(&start)
                        .zip(&direction)
                    {
                        *value = (f64::from(*start) + distance * f64::from(*slope) / length) as f32;
                    }
                    support::learn(&engine, &lora, &batches, Some(&dropout))
                        .0
                        .sum
                };
                let slope = (at(step) - at(-step)) / (2.0 * step);
                at(0.0);
                assert!(
                    (slope / length - 1.0).abs() < 5e-3,
                    "{}: slope {slope}, gradient {length}",
                    view.name
                );
            }
        }
    }
}

fn every_trainable_tensor_has_a_gradient_that_is_finite_and_not_zero(on: &On) {
    let config = support::config();
    let engine = on.engine(&config);
    let lora = support::lora(&config, &Target::ALL);
    let (_, grads) = support::learn(&engine, &lora, &[support::batch(&config, &[8, 8])], None);
    for view in lora.views() {
        let grads = &grads[view.range];
        assert!(grads.iter().all(|grad| grad.is_finite()), "{}", view.name);
        assert!(grads.iter().any(|grad| *grad != 0.0), "{}", view.name);
    }
}

fn gradients_add_up_and_bad_batches_leave_them_alone(on: &On) {
    let config = support::config();
    let engine = on.engine(&config);
    let lora = support::lora(&config, &[Target::QueryKeyValue]);
    let batch = support::batch(&config, &[5, 6]);
    let mut training = support::training(&engine, &lora);
    training.accumulate(&batch, None).unwrap();
    let once = training.gradients().unwrap();
    training.accumulate(&batch, None).unwrap();
    let twice = training.gradients().unwrap();
    let doubled: Vec<f32> = once.iter().map(|grad| 2.0 * grad).collect();
    support::assert_close(&twice, &doubled, 1e-6, "sum of two");

    let spoilt = |spoil: &dyn Fn(&mut togi_model::Batch)| {
        let mut wrong = batch.clone();
        spoil(&mut wrong);
        wrong
    };
    for wrong in [
        spoilt(&|batch| batch.ids[3] = 1000),
        spoilt(&|batch| batch.labels[3] = -7),
        spoilt(&|batch| batch.starts[1] = 0),
    ] {
        assert!(training.accumulate(&wrong, None).is_err());
    }
    assert_eq!(training.gradients().unwrap(), twice);
}

fn a_batch_without_targets_has_no_loss_and_no_gradient(on: &On) {
    let config = support::config();
    let engine = on.engine(&config);
    let lora = support::lora(&config, &[Target::Dense]);
    let mut batch = support::batch(&config, &[5, 1]);
    batch.labels.fill(-100);
    let (loss, grads) = support::learn(&engine, &lora, &[batch], None);
    assert_eq!((loss.sum, loss.targets, loss.mean()), (0.0, 0, 0.0));
    assert!(grads.iter().all(|grad| *grad == 0.0));
}
