//! Decoding with a cache equals the full pass, alone and beside other sequences.

use togi_model::decode::{Decoder, End, Member, Rounds, Sequence, Share};
use togi_model::sampling::Options;
use togi_model::{Config, Engine, Phase, Segment, Target};

use crate::support::{self, On, on_each_device};

on_each_device!(
    steps_over_a_cache_equal_the_full_pass,
    the_logits_of_all_tokens_are_those_of_each_step,
    decoding_gives_the_loss_of_the_training_pass,
    sequences_with_different_adapters_run_in_one_pass,
    what_does_not_fit_is_refused_and_the_cache_stays,
    the_loop_writes_the_same_in_chunks_and_together_as_alone,
    an_error_ends_only_its_own_sequence,
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

/// An answer in rounds.
struct Answer {
    number: usize,
    sequence: Sequence,
    ids: Vec<u32>,
}

impl Member for Answer {
    fn sequence(&mut self) -> &mut Sequence {
        &mut self.sequence
    }
}

/// Runs rounds until every sequence ends; returns their tokens and end reasons. Each round, `skips`
/// says whether it passes a sequence over.
fn write_all(
    decoder: &Decoder<'_>,
    sequences: Vec<Sequence>,
    chunk: usize,
    skips: impl Fn(usize, usize) -> bool,
) -> Vec<(Vec<u32>, End)> {
    let mut rounds = Rounds::default();
    let mut written = vec![None; sequences.len()];
    for (number, sequence) in sequences.into_iter().enumerate() {
        rounds.join(Answer {
            number,
            sequence,
            ids: Vec::new(),
        });
    }
    let mut round = 0;
    while !rounds.members().is_empty() {
        let ended = rounds.run(
            decoder,
            |answer| (!skips(round, answer.number)).then(|| answer.sequence.chunk(chunk)),
            |answer, choice| {
                let choice = choice.unwrap()?;
                answer.ids.push(choice.id);
                choice.end
            },
        );
        for (answer, end) in ended {
            written[answer.number] = Some((answer.ids, end));
        }
        round += 1;
    }
    written.into_iter().map(Option::unwrap).collect()
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
        .map(|sequence| write_all(&decoder, vec![sequence], usize::MAX, |_, _| false).remove(0))
        .collect();
    for (ids, end) in &expected {
        assert_eq!((ids.len(), *end), (6, End::Length));
    }
    for chunk in [1, 4, usize::MAX] {
        let together = write_all(&decoder, begin(&decoder), chunk, |_, _| false);
        assert_eq!(together, expected, "chunks of {chunk}");
        let skips = |round: usize, number: usize| (round + number).is_multiple_of(3);
        let in_turns = write_all(&decoder, begin(&decoder), chunk, skips);
        assert_eq!(in_turns, expected, "chunks of {chunk}, in turns");
    }
    // The third token of the first answer becomes the end token for all answers.
    let eos = expected[0].0[2];
    let decoder = Decoder::new(&engine, Some(eos));
    let until_eos = write_all(&decoder, begin(&decoder), 4, |_, _| false);
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
