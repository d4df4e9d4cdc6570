//! Tokens chosen from a few logits, and log-probabilities, are those of all logits.

use std::sync::Arc;

use togi_model::decode::{Decoder, Share};
use togi_model::sampling::Options;
use togi_model::{Base, Config, Target, base};

use crate::support::{self, On, on_each_device};

on_each_device!(
    the_highest_logits_choose_as_all_do,
    log_probabilities_of_a_prompt_are_those_of_the_full_pass,
    equal_logits_are_told_by_token,
);

const IDS: [u32; 9] = [4, 8, 15, 16, 23, 30, 7, 1, 36];

/// A bias that changes no logit asks for all logits.
fn the_highest_logits_choose_as_all_do(on: &On) {
    for vocab_size in [37, 701, 1024] {
        let engine = on.engine(&Config {
            vocab_size,
            ..support::config()
        });
        let decoder = Decoder::new(&engine, None);
        let plain = Options {
            max_new_tokens: 24,
            repetition_penalty: 1.3,
            ..Options::default()
        };
        for (greedy, top_k, seed) in [(true, 0, 0), (false, 5, 1), (false, 40, 2), (false, 64, 3)] {
            let options = Options {
                greedy,
                top_k,
                seed,
                ..plain.clone()
            };
            let all = Options {
                logit_bias: [(0, 1e-30)].into(),
                ..options.clone()
            };
            let [highest, all] = [options, all].map(|options| {
                let mut sequence = decoder.begin(&IDS, None, &options).unwrap();
                let mut ids = Vec::new();
                loop {
                    let sequence = &mut sequence;
                    let share = Share {
                        sequence,
                        tokens: 4,
                    };
                    let choice = decoder.run(&mut [share]).remove(0).unwrap();
                    ids.extend(choice.as_ref().map(|choice| choice.id));
                    if choice.is_some_and(|choice| choice.end.is_some()) {
                        return ids;
                    }
                }
            });
            assert_eq!(highest, all, "{vocab_size} {top_k}");
        }
    }
}

/// The prompt is longer than the rows that are scored at once, and another one is read beside it.
fn log_probabilities_of_a_prompt_are_those_of_the_full_pass(on: &On) {
    for vocab_size in [37, 701, 1024] {
        log_probabilities_are_those_of_the_full_pass(on, vocab_size);
    }
}

fn log_probabilities_are_those_of_the_full_pass(on: &On, vocab_size: usize) {
    let config = Config {
        vocab_size,
        max_position_embeddings: 256,
        ..support::config()
    };
    let engine = on.engine(&config);
    let lora = support::lora(&config, &Target::ALL);
    let adapter = engine.adapter(&lora).unwrap();
    let ids: Vec<u32> = (0..200).map(|place| place * place % 37).collect();
    let logits = engine.logits(&ids, Some(&adapter)).unwrap();
    let decoder = Decoder::new(&engine, None);
    let scored = Options {
        prompt_logprobs: Some(20),
        ..Options::default()
    };
    for chunk in [200, 150, 64, 7] {
        let mut sequence = decoder.begin(&ids, Some(adapter.clone()), &scored).unwrap();
        let mut other = decoder.begin(&IDS, None, &Options::default()).unwrap();
        let mut read = Vec::new();
        while sequence.unread() > 0 {
            let mut shares = vec![Share {
                sequence: &mut sequence,
                tokens: chunk,
            }];
            if other.unread() > 0 {
                shares.push(Share {
                    sequence: &mut other,
                    tokens: 2,
                });
            }
            for choice in decoder.run(&mut shares) {
                choice.unwrap();
            }
            read.extend(sequence.take_prompt_logprobs());
            assert!(other.take_prompt_logprobs().is_empty());
        }
        assert_eq!(read.iter().map(|r| r.id).collect::<Vec<_>>(), ids);
        assert_eq!((read[0].logprob, read[0].best.len()), (None, 0));
        let (mut got, mut want) = (Vec::new(), Vec::new());
        for (row, told) in logits.chunks(vocab_size).zip(&read[1..]) {
            let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            let of = |id: u32| (f64::from(row[id as usize]) - sum.ln()) as f32;
            let logprob = told.logprob.unwrap();
            assert_eq!(told.best.len(), 20);
            let is_sorted = told.best.is_sorted_by(|one, next| {
                one.logprob > next.logprob || (one.logprob == next.logprob && one.id < next.id)
            });
            assert!(is_sorted, "{:?}", told.best);
            for likely in &told.best {
                assert!(likely.id != told.id || likely.logprob == logprob);
                got.push(likely.logprob);
                want.push(of(likely.id));
            }
            got.push(logprob);
            want.push(of(told.id));
        }
        support::assert_close(&got, &want, on.tolerance, "log-probabilities");
    }
}

/// A GPU does not tell the highest of equals that are more than it tells at all.
fn equal_logits_are_told_by_token(on: &On) {
    let config = Config {
        vocab_size: 900,
        ..support::config()
    };
    let folder = tempfile::tempdir().unwrap();
    base::write(folder.path(), &config, |name, count| {
        let is_head = name == "embed_out.weight";
        let value = |at: usize| if is_head { 0.0 } else { (at as f32).sin() };
        (0..count).map(value).collect()
    })
    .unwrap();
    let engine = on.over(Arc::new(Base::load(folder.path()).unwrap()));
    let decoder = Decoder::new(&engine, None);
    let scored = Options {
        prompt_logprobs: Some(5),
        ..Options::default()
    };
    let mut sequence = decoder.begin(&IDS, None, &scored).unwrap();
    let share = Share {
        sequence: &mut sequence,
        tokens: IDS.len(),
    };
    decoder.run(&mut [share]).remove(0).unwrap();
    let logprob = -(900_f64.ln()) as f32;
    for told in &sequence.take_prompt_logprobs()[1..] {
        let best: Vec<_> = told.best.iter().map(|l| (l.id, l.logprob)).collect();
        let expected: Vec<_> = (0..5).map(|id| (id, logprob)).collect();
        assert_eq!((told.logprob, best), (Some(logprob), expected));
    }
}
