//! Packing and micro-batches do not change the loss, the gradient or the dropout mask.

use togi_model::{Batch, Config, Dropout, Target};

use crate::support::{self, On, on_each_device};

on_each_device!(
    packed_records_equal_records_one_by_one,
    a_record_does_not_see_its_neighbours,
    dropout_depends_on_seed_step_and_slot_and_keeps_the_mean,
);

fn packed_and_single(on: &On, config: &Config, dropout: Option<&Dropout>) {
    let engine = on.engine(config);
    let lora = support::lora(config, &Target::ALL);
    let batch = support::batch(config, &[9, 1, 17, 4]);
    let (loss, packed) = support::learn(&engine, &lora, std::slice::from_ref(&batch), dropout);
    let (sum, single) = support::learn(&engine, &lora, &support::one_by_one(&batch), dropout);
    on.assert_same(loss.sum, sum.sum, "loss");
    assert_eq!(loss.targets, sum.targets);
    support::assert_close(&packed, &single, on.tolerance, "gradient");
}

fn packed_records_equal_records_one_by_one(on: &On) {
    for use_parallel_residual in [false, true] {
        let config = Config {
            use_parallel_residual,
            rotary_pct: 0.25,
            ..support::config()
        };
        packed_and_single(on, &config, None);
        packed_and_single(
            on,
            &config,
            Some(&Dropout {
                p: 0.3,
                seed: 1,
                step: 2,
            }),
        );
    }
}

fn a_record_does_not_see_its_neighbours(on: &On) {
    let config = support::config();
    let engine = on.engine(&config);
    let batch = support::batch(&config, &[6, 8]);
    let mut changed = batch.clone();
    changed.ids[2] = (changed.ids[2] + 1) % 37;
    // Only the second record has targets.
    let second = |mut batch: Batch| {
        batch.labels[..6].fill(-100);
        engine.evaluate(None, &batch).unwrap().sum
    };
    assert_eq!(second(batch).to_bits(), second(changed).to_bits());
}

fn dropout_depends_on_seed_step_and_slot_and_keeps_the_mean(on: &On) {
    let config = support::config();
    let engine = on.engine(&config);
    let lora = support::lora(&config, &[Target::QueryKeyValue]);
    let batch = support::batch(&config, &[12]);
    let run = |batch: &Batch, p: f64, seed: u64, step: u64| {
        let dropout = Dropout { p, seed, step };
        support::learn(&engine, &lora, std::slice::from_ref(batch), Some(&dropout))
            .0
            .sum
    };
    let reference = run(&batch, 0.5, 1, 1);
    assert_eq!(reference.to_bits(), run(&batch, 0.5, 1, 1).to_bits());
    assert_ne!(reference.to_bits(), run(&batch, 0.5, 2, 1).to_bits());
    assert_ne!(reference.to_bits(), run(&batch, 0.5, 1, 2).to_bits());
    let mut other = batch.clone();
    other.slots[0] = 1;
    assert_ne!(reference.to_bits(), run(&other, 0.5, 1, 1).to_bits());
    // Nothing is dropped at 0, and the mean over many masks approaches the loss without dropout.
    let plain = engine.evaluate(Some(&lora), &batch).unwrap().sum;
    on.assert_same(plain, run(&batch, 0.0, 1, 1), "no dropout");
    let mean = (0..200).map(|step| run(&batch, 0.1, 3, step)).sum::<f64>() / 200.0;
    assert!((mean / plain - 1.0).abs() < 0.02, "{mean} against {plain}");
}
