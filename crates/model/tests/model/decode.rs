//! Decoding with a cache equals the full pass, alone and beside other sequences.

use std::ops::Range;
use std::sync::Arc;

use togi_model::decode::{Decoder, End, Sequence, Share};
use togi_model::sampling::Options;
use togi_model::{
    Adapter, Base, Cache, Config, Engine, LoraConfig, Phase, Precision, Segment, Target, base,
};

use crate::support::{self, On, on_each_device};

on_each_device!(
    steps_over_a_cache_equal_the_full_pass,
    the_logits_of_all_tokens_are_those_of_each_step,
    decoding_gives_the_loss_of_the_training_pass,
    sequences_with_different_adapters_run_in_one_pass,
    what_does_not_fit_is_refused_and_the_cache_stays,
    the_loop_writes_the_same_in_chunks_and_together_as_alone,
    an_error_ends_only_its_own_sequence,
    a_sequence_has_the_same_logits_alone_and_among_many,
    a_long_sequence_equals_the_full_pass,
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
                .map(|((cache, ids), adapter)| Segment {
                    cache,
                    ids,
                    adapter,
                    phase: if ids == &[5] {
                        Phase::Decode
                    } else {
                        Phase::Prefill
                    },
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

/// Runs rounds until every sequence ends; returns their tokens and end reasons.
fn write_all(
    decoder: &Decoder<'_>,
    sequences: Vec<Sequence>,
    chunk: usize,
) -> Vec<(Vec<u32>, End)> {
    let mut writing: Vec<_> = sequences
        .into_iter()
        .map(|sequence| (sequence, Vec::new(), None))
        .collect();
    while writing.iter().any(|(_, _, end)| end.is_none()) {
        let open = || |(_, _, end): &&mut (Sequence, Vec<u32>, Option<End>)| end.is_none();
        let mut shares: Vec<_> = writing
            .iter_mut()
            .filter(open())
            .map(|(sequence, _, _)| Share {
                sequence,
                tokens: chunk,
            })
            .collect();
        let choices = decoder.run(&mut shares);
        for ((_, ids, end), choice) in writing.iter_mut().filter(open()).zip(choices) {
            if let Some(choice) = choice.unwrap() {
                ids.push(choice.id);
                *end = choice.end;
            }
        }
    }
    let ended = |(_, ids, end): (_, _, Option<End>)| (ids, end.unwrap());
    writing.into_iter().map(ended).collect()
}

fn the_loop_writes_the_same_in_chunks_and_together_as_alone(on: &On) {
    let engine = on.engine(&support::config());
    let lora = support::lora(engine.config(), &Target::ALL);
    let adapter = engine.adapter(&lora).unwrap();
    let options = Options {
        greedy: true,
        no_repeat_ngram_size: 0,
        max_new_tokens: 6,
        ..Options::default()
    };
    let begin = |decoder: &Decoder<'_>| -> Vec<Sequence> {
        [(9, None), (3, Some(&adapter)), (1, Some(&adapter))]
            .map(|(len, adapter)| decoder.begin(&IDS[..len], adapter.cloned(), &options))
            .map(Result::unwrap)
            .into()
    };
    let decoder = Decoder::new(&engine, None);
    let expected: Vec<_> = begin(&decoder)
        .into_iter()
        .map(|sequence| write_all(&decoder, vec![sequence], usize::MAX).remove(0))
        .collect();
    for (ids, end) in &expected {
        assert_eq!((ids.len(), *end), (6, End::Length));
    }
    for chunk in [1, 4, usize::MAX] {
        let together = write_all(&decoder, begin(&decoder), chunk);
        assert_eq!(together, expected, "chunks of {chunk}");
    }
    // The third token of the first answer becomes the end token for all answers.
    let eos = expected[0].0[2];
    let until_eos = write_all(&Decoder::new(&engine, Some(eos)), begin(&decoder), 4);
    for ((ids, end), (whole, _)) in until_eos.into_iter().zip(&expected) {
        let (len, reason) = match whole.iter().position(|&id| id == eos) {
            Some(at) => (at + 1, End::Eos),
            None => (whole.len(), End::Length),
        };
        assert_eq!((&ids[..], end), (&whole[..len], reason));
    }
}

fn an_error_ends_only_its_own_sequence(on: &On) {
    let engine = on.engine(&support::config());
    let other_engine = on.engine(&support::config());
    let lora = support::lora(engine.config(), &Target::ALL);
    let foreign = other_engine.adapter(&lora).unwrap();
    let decoder = Decoder::new(&engine, None);
    let options = Options::default();
    let begin = |ids: &[u32], adapter| decoder.begin(ids, adapter, &options).unwrap();
    let mut sequences = [
        begin(&IDS, None),
        begin(&[37], None),
        begin(&IDS, Some(foreign)),
        begin(&IDS[..2], None),
    ];
    let mut shares: Vec<_> = sequences
        .iter_mut()
        .map(|sequence| Share {
            sequence,
            tokens: 16,
        })
        .collect();
    let results: Vec<bool> = decoder.run(&mut shares).iter().map(Result::is_ok).collect();
    assert_eq!(results, [true, false, false, true]);
    assert_eq!(sequences.map(|s| s.unread()), [0, 1, 9, 0]);
    assert!(decoder.run(&mut []).is_empty());
}

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
/// first its prompt in two parts, then its answer.
fn logits_among(
    engine: &Engine,
    adapters: &[Option<Adapter>],
    which: usize,
    others: usize,
) -> Vec<Vec<f32>> {
    let mut caches: Vec<_> = (0..=others).map(|_| engine.cache()).collect();
    let ids: Vec<u32> = (0..40).map(|place| place * 7 % 37).collect();
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
        pass(&mut caches, 0..16, Phase::Prefill),
        pass(&mut caches, 16..32, Phase::Prefill),
    ];
    logits.extend((32..40).map(|at| pass(&mut caches, at..at + 1, Phase::Decode)));
    logits
}

fn a_sequence_has_the_same_logits_alone_and_among_many(on: &On) {
    let engine = on.engine(&support::config());
    let adapters = adapters(&engine);
    for which in 0..adapters.len() {
        let alone = logits_among(&engine, &adapters, which, 0);
        for others in [1, 7, 63, 69] {
            let among = logits_among(&engine, &adapters, which, others);
            assert_eq!(among, alone, "{which} among {others}");
        }
    }
}

/// The sequence is longer than one attention block of the GPU reads, in both phases.
fn a_long_sequence_equals_the_full_pass(on: &On) {
    for (heads, dim) in [(2, 24), (3, 20), (2, 128), (1, 200)] {
        let config = Config {
            hidden_size: heads * dim,
            num_attention_heads: heads,
            max_position_embeddings: 640,
            ..support::config()
        };
        let engine = on.engine(&config);
        let lora = support::lora(&config, &Target::ALL);
        let adapter = engine.adapter(&lora).unwrap();
        let ids: Vec<u32> = (0..600).map(|place| place * place % 37).collect();
        let whole = engine.logits(&ids, Some(&adapter)).unwrap();
        let expected = |at: usize| &whole[at * 37..(at + 1) * 37];
        // These heads are wider than in the other tests, so rounding errors are larger.
        let tolerance = 2.0 * on.tolerance;
        let mut cache = engine.cache();
        for range in [0..250, 250..570] {
            let end = range.end;
            let logits = engine.decode(&mut cache, &ids[range], Some(&adapter));
            support::assert_close(&logits.unwrap(), expected(end - 1), tolerance, "prompt");
        }
        for at in 570..600 {
            let logits = engine.decode_batch(&mut [Segment {
                cache: &mut cache,
                ids: &ids[at..=at],
                adapter: Some(&adapter),
                phase: Phase::Decode,
            }]);
            support::assert_close(&logits.unwrap()[0], expected(at), tolerance, "answer");
        }
        drop(cache);
        assert_eq!(engine.cached_tokens(), 0);
    }
}

/// Returns engines on the CPU in all precisions, wide enough that a sum has several parts. Large
/// norm gains make outliers of int8 in some columns of some rows.
fn in_all_precisions() -> impl Iterator<Item = (Precision, Engine)> {
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
        let alone = logits_among(&engine, &adapters, 0, 0);
        for others in [1, 7, 63] {
            let among = logits_among(&engine, &adapters, 0, others);
            assert_eq!(among, alone, "{precision:?} among {others}");
        }
    }
}

#[test]
fn in_each_precision_a_prompt_in_parts_gives_the_same_logits() {
    for (precision, engine) in in_all_precisions() {
        let adapters = adapters(&engine);
        let adapter = adapters[0].as_ref();
        let ids: Vec<u32> = (0..300).map(|place| place * place % 37).collect();
        let logits = |parts: &[Range<usize>]| {
            let mut cache = engine.cache();
            let mut logits = Vec::new();
            for part in parts {
                logits = engine
                    .decode(&mut cache, &ids[part.clone()], adapter)
                    .unwrap();
            }
            let answer = engine.decode_batch(&mut [Segment {
                cache: &mut cache,
                ids: &[5],
                adapter,
                phase: Phase::Decode,
            }]);
            [logits, answer.unwrap().remove(0)]
        };
        let whole = logits(std::slice::from_ref(&(0..300)));
        for parts in [
            &[0..128, 128..256, 256..300][..],
            &[0..256, 256..300],
            &[0..128, 128..300],
        ] {
            assert_eq!(logits(parts), whole, "{precision:?} in {parts:?}");
        }
    }
}
