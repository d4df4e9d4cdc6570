//! A sequence has the same logits alone, among others and in parts, bit for bit.

use std::ops::Range;
use std::sync::Arc;

use togi_model::{
    Adapter, Base, Cache, Config, Engine, LoraConfig, Phase, Precision, Segment, Target, base,
};

use crate::support::{self, On, on_each_device};

on_each_device!(a_sequence_has_the_same_logits_alone_and_among_many);

/// Adapters of mixed ranks; the base alone is among them.
fn adapters(engine: &Engine) -> Vec<Option<Adapter>> {
    let mut adapters: Vec<_> = [
        (4, &Target::ALL[..]),
        (9, &[Target::QueryKeyValue]),
        (17, &Target::ALL),
    ]
    .map(|(rank, targets)| {
        let settings = LoraConfig {
            rank,
            ..support::lora_config(targets)
        };
        let lora = support::lora_of(engine.config(), &settings);
        Some(engine.adapter(&lora).unwrap())
    })
    .into();
    adapters.push(None);
    adapters
}

/// Returns the logits of the `which`-th kind of sequence in each pass, beside `others` sequences:
/// first its prompt of `prompt` tokens in two parts, then its answer.
fn logits_among(
    engine: &Engine,
    adapters: &[Option<Adapter>],
    which: usize,
    others: usize,
    prompt: usize,
) -> Vec<Vec<f32>> {
    let mut caches: Vec<_> = (0..=others).map(|_| engine.cache()).collect();
    let ids: Vec<u32> = (0..prompt as u32 + 8).map(|place| place * 7 % 37).collect();
    let pass = |caches: &mut [Cache], range: Range<usize>, phase| {
        let segments = caches.iter_mut().enumerate();
        let mut segments: Vec<_> = segments
            .map(|(number, cache)| Segment {
                cache,
                // The other sequences have different ids and shorter prompts.
                ids: match (number, phase) {
                    (0, _) => &ids[range.clone()],
                    (_, Phase::Prefill) => &ids[..1 + number % range.len()],
                    (_, Phase::Decode) => &ids[number % 30..=number % 30],
                },
                // Some neighbours have the same adapter.
                adapter: adapters[(which + number * number / 3) % adapters.len()].as_ref(),
                phase,
            })
            .collect();
        engine.decode_batch(&mut segments).unwrap().swap_remove(0)
    };
    let mut logits = vec![
        pass(&mut caches, 0..prompt / 2, Phase::Prefill),
        pass(&mut caches, prompt / 2..prompt, Phase::Prefill),
    ];
    logits.extend((prompt..prompt + 8).map(|at| pass(&mut caches, at..at + 1, Phase::Decode)));
    logits
}

fn a_sequence_has_the_same_logits_alone_and_among_many(on: &On) {
    let engine = on.engine(&support::config());
    let adapters = adapters(&engine);
    for which in 0..adapters.len() {
        let alone = logits_among(&engine, &adapters, which, 0, 32);
        for others in [1, 7, 63, 69] {
            let among = logits_among(&engine, &adapters, which, others, 32);
            assert_eq!(among, alone, "{which} among {others}");
        }
    }
}

/// Returns engines on the CPU in all precisions, wide enough that a sum has several parts. Large
/// norm gains make outliers of int8 in some columns of some rows.
pub(crate) fn in_all_precisions() -> impl Iterator<Item = (Precision, Engine)> {
    let config = Config {
        intermediate_size: 1100,
        max_position_embeddings: 512,
        ..support::deep()
    };
    let folder = tempfile::tempdir().unwrap();
    base::write(folder.path(), &config, |name, count| {
        let bound = if name.contains("norm") { 4.0 } else { 0.5 };
        (0..count)
            .map(|at| bound * (1.0 + at as f32 * 1.7).sin())
            .collect()
    })
    .unwrap();
    Precision::ALL.into_iter().map(move |precision| {
        let base = Base::load_as(folder.path(), precision).unwrap();
        (precision, Engine::new(Arc::new(base)).unwrap())
    })
}

/// In int8 too: outliers are chosen for each row separately.
#[test]
fn in_each_precision_a_sequence_has_the_same_logits_alone_and_among_many() {
    for (precision, engine) in in_all_precisions() {
        let adapters = adapters(&engine);
        let alone = logits_among(&engine, &adapters, 0, 0, 32);
        for others in [1, 7, 63] {
            let among = logits_among(&engine, &adapters, 0, others, 32);
            assert_eq!(among, alone, "{precision:?} among {others}");
        }
    }
}

/// As wide as a real base, so that blocks share sums, and with keys in two blocks of attention.
#[cfg(feature = "cuda")]
#[test]
fn in_each_precision_wide_layers_give_the_same_logits_alone_and_among_many() {
    if !support::has_card() {
        return;
    }
    let config = Config {
        hidden_size: 2816,
        num_hidden_layers: 3,
        num_attention_heads: 22,
        intermediate_size: 8960,
        max_position_embeddings: 512,
        ..support::config()
    };
    let folder = tempfile::tempdir().unwrap();
    base::write(folder.path(), &config, |_, count| {
        (0..count)
            .map(|at| (at as u32).wrapping_mul(0x9e37_79b9) as i32 as f32 / 4e10)
            .collect()
    })
    .unwrap();
    let precisions = Precision::ALL.into_iter();
    for precision in precisions.filter(|&precision| precision != Precision::F32) {
        let base = Arc::new(Base::load_as(folder.path(), precision).unwrap());
        // Each precision computes in one type.
        let device = togi_model::DeviceName::Cuda { ordinal: 0 }.device(precision);
        let engine = Engine::on(base, device).unwrap();
        let adapters = adapters(&engine);
        // With factors of the joint product alone, and the base.
        for which in [1, 3] {
            let alone = logits_among(&engine, &adapters, which, 0, 296);
            let are_finite = alone.iter().flatten().all(|logit| logit.is_finite());
            assert!(are_finite, "{precision:?} {which}");
            for others in [1, 7, 69] {
                let among = logits_among(&engine, &adapters, which, others, 296);
                assert_eq!(among, alone, "{precision:?} {which} among {others}");
            }
        }
    }
}

#[test]
fn in_each_precision_a_prompt_in_parts_gives_the_same_logits() {
    for (precision, engine) in in_all_precisions() {
        let adapters = adapters(&engine);
        let adapter = adapters[0].as_ref();
        let ids: Vec<u32> = (0..300).map(|place| place * place % 37).collect();
        let logits = |ends: &[usize]| {
            let mut cache = engine.cache();
            let mut logits = Vec::new();
            for &end in ends {
                let part = &ids[cache.len()..end];
                logits = engine.decode(&mut cache, part, adapter).unwrap();
            }
            let answer = engine.decode_batch(&mut [Segment {
                cache: &mut cache,
                ids: &[5],
                adapter,
                phase: Phase::Decode,
            }]);
            [logits, answer.unwrap().remove(0)]
        };
        let whole = logits(&[300]);
        for ends in [&[128, 256, 300][..], &[256, 300], &[128, 300]] {
            assert_eq!(logits(ends), whole, "{precision:?} in parts to {ends:?}");
        }
    }
}
