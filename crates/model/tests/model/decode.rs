//! Decoding over a cache equals the full pass, with and without other sequences.

use std::sync::Arc;

use togi_model::{Base, Config, Engine, Precision, Step, Target, base};

use crate::support::{self, On, on_each_device};

on_each_device!(
    steps_over_a_cache_equal_the_full_pass,
    the_logits_of_all_tokens_are_those_of_each_step,
    decoding_gives_the_loss_of_the_training_pass,
    sequences_with_different_adapters_run_in_one_pass,
    what_does_not_fit_is_refused_and_the_cache_stays,
);

const IDS: [u32; 9] = [4, 8, 15, 16, 23, 30, 7, 1, 36];

fn models(on: &On) -> impl Iterator<Item = Engine> {
    [(false, 1.0, false), (true, 0.25, true)]
        .into_iter()
        .map(|(parallel, rotary_pct, tied)| {
            let config = Config {
                use_parallel_residual: parallel,
                tie_word_embeddings: tied,
                rotary_pct,
                ..support::config()
            };
            on.engine(&config)
        })
}

fn steps_over_a_cache_equal_the_full_pass(on: &On) {
    for engine in models(on) {
        let adapter = engine
            .adapter(&support::lora(engine.config(), &Target::ALL))
            .unwrap();
        for adapter in [None, Some(&adapter)] {
            let whole = engine.decode(&mut engine.cache(), &IDS, adapter).unwrap();
            assert_eq!(whole.len(), 37);
            for split in [1, 4, 8] {
                let mut cache = engine.cache();
                engine.decode(&mut cache, &IDS[..split], adapter).unwrap();
                let mut last = Vec::new();
                for &id in &IDS[split..] {
                    last = engine.decode(&mut cache, &[id], adapter).unwrap();
                }
                assert_eq!(cache.len(), IDS.len());
                support::assert_close(&last, &whole, on.tolerance, "logits");
            }
        }
    }
}

fn the_logits_of_all_tokens_are_those_of_each_step(on: &On) {
    for engine in models(on) {
        let lora = support::lora(engine.config(), &Target::ALL);
        let adapter = engine.adapter(&lora).unwrap();
        for adapter in [None, Some(&adapter)] {
            let all = engine.logits(&IDS, adapter).unwrap();
            let rows: Vec<&[f32]> = all.chunks(37).collect();
            assert_eq!(rows.len(), IDS.len());
            let mut cache = engine.cache();
            for (&id, row) in IDS.iter().zip(rows) {
                let step = engine.decode(&mut cache, &[id], adapter).unwrap();
                support::assert_close(row, &step, on.tolerance, "logits");
            }
        }
        for ids in [&[][..], &[37], &[1; 65]] {
            assert!(engine.logits(ids, None).is_err(), "{ids:?}");
        }
    }
}

fn decoding_gives_the_loss_of_the_training_pass(on: &On) {
    for engine in models(on) {
        let lora = support::lora(engine.config(), &Target::ALL);
        let adapter = engine.adapter(&lora).unwrap();
        let mut batch = togi_model::Batch::new();
        let mut labels = [-100; 9];
        labels[8] = 36;
        batch.push(&IDS, &labels, 0);
        let loss = engine.evaluate(Some(&lora), &batch).unwrap();
        let logits = engine
            .decode(&mut engine.cache(), &IDS[..8], Some(&adapter))
            .unwrap();
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        assert_eq!(loss.targets, 1);
        on.assert_same(total.ln() - f64::from(logits[36]), loss.sum, "loss");
    }
}

fn sequences_with_different_adapters_run_in_one_pass(on: &On) {
    for engine in models(on) {
        let one = engine
            .adapter(&support::lora(engine.config(), &Target::ALL))
            .unwrap();
        let two = engine
            .adapter(&support::lora(engine.config(), &[Target::Dense]))
            .unwrap();
        let adapters = [None, Some(&one), Some(&two), Some(&one)];
        let lens = [9, 3, 1, 5];
        let mut caches: Vec<_> = lens.iter().map(|_| engine.cache()).collect();
        let alone: Vec<_> = adapters
            .iter()
            .zip(lens)
            .map(|(adapter, len)| {
                let mut cache = engine.cache();
                engine.decode(&mut cache, &IDS[..len], *adapter).unwrap();
                engine.decode(&mut cache, &[5], *adapter).unwrap()
            })
            .collect();
        let mut pass = |ids: &dyn Fn(usize) -> Vec<u32>| {
            let ids: Vec<Vec<u32>> = lens.iter().map(|&len| ids(len)).collect();
            let steps = caches.iter_mut().zip(&ids).zip(adapters);
            let mut steps: Vec<_> = steps
                .map(|((cache, ids), adapter)| Step {
                    cache,
                    ids,
                    adapter,
                })
                .collect();
            engine.decode_batch(&mut steps).unwrap()
        };
        pass(&|len| IDS[..len].to_vec());
        for (together, alone) in pass(&|_| vec![5]).iter().zip(&alone) {
            support::assert_close(together, alone, on.tolerance, "logits");
        }
    }
}

fn what_does_not_fit_is_refused_and_the_cache_stays(on: &On) {
    let engine = on.engine(&support::config());
    let mut cache = engine.cache();
    engine.decode(&mut cache, &IDS, None).unwrap();
    assert!(engine.decode(&mut cache, &[], None).is_err());
    assert!(engine.decode(&mut cache, &[37], None).is_err());
    assert!(
        engine.decode(&mut cache, &[1; 56], None).is_err(),
        "65 tokens, 64 fit"
    );
    assert_eq!(cache.len(), IDS.len());
    engine.decode(&mut cache, &[1; 55], None).unwrap();
}

/// Outliers are chosen for each row separately, so that an answer does not depend on the others of
/// its pass.
#[test]
fn in_int8_a_sequence_has_the_same_logits_alone_and_beside_others() {
    let config = support::config();
    let folder = tempfile::tempdir().unwrap();
    // Large gains of the norms make outliers in some columns of some rows.
    base::write(folder.path(), &config, |name, count| {
        let bound = if name.contains("norm") { 4.0 } else { 0.5 };
        (0..count)
            .map(|at| bound * (1.0 + at as f32 * 1.7).sin())
            .collect()
    })
    .unwrap();
    let base = Base::load_as(folder.path(), Precision::Int8).unwrap();
    let engine = Engine::new(Arc::new(base)).unwrap();
    let prompts: [&[u32]; 4] = [&IDS[..1], &IDS[1..3], &IDS[3..4], &IDS[4..6]];
    let alone: Vec<_> = prompts
        .iter()
        .map(|ids| engine.decode(&mut engine.cache(), ids, None).unwrap())
        .collect();
    let mut caches: Vec<_> = prompts.iter().map(|_| engine.cache()).collect();
    let mut steps: Vec<_> = caches
        .iter_mut()
        .zip(prompts)
        .map(|(cache, ids)| Step {
            cache,
            ids,
            adapter: None,
        })
        .collect();
    assert_eq!(engine.decode_batch(&mut steps).unwrap(), alone);
}
