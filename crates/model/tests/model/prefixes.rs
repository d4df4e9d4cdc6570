//! Beginnings of prompts that are kept, and answers that share a prompt: they change no bit.

use togi_model::decode::{Choice, Decoder, End, Sequence, Share};
use togi_model::sampling::Options;
use togi_model::{Adapter, Config, Engine, LoraConfig, PAGE, Target, engine::PrefixLimits};

use crate::same_bytes::in_all_precisions;
use crate::support::{self, On, on_each_device};

on_each_device!(
    an_answer_is_the_same_with_a_kept_beginning,
    a_prompt_that_is_scored_reads_all_of_its_tokens,
    a_prompt_is_not_found_under_another_adapter,
    an_answer_is_the_same_after_its_beginning_was_given_away,
    a_fork_writes_the_answer_of_its_seed_alone,
);

/// The longest prompt and its answer.
const LONGEST: usize = 420;

fn config() -> Config {
    Config {
        max_position_embeddings: LONGEST,
        ..support::config()
    }
}

fn limits(kept: usize, pages: usize) -> PrefixLimits {
    PrefixLimits { kept, pages }
}

/// Draws by seed and tells log-probabilities, in which a changed bit of the logits shows.
fn options(seed: u64) -> Options {
    Options {
        seed,
        temperature: 1.0,
        no_repeat_ngram_size: 0,
        max_new_tokens: 5,
        logprobs: Some(8),
        ..Options::default()
    }
}

/// A prompt of `len` tokens, of which the first `same` are those of every other one.
fn prompt(len: usize, same: usize, kind: usize) -> Vec<u32> {
    let id = |at: usize| if at < same { at * at } else { at * 5 + kind };
    (0..len).map(|at| (id(at) % 37) as u32).collect()
}

/// Two adapters with names, of which the second is larger, and the base alone.
fn adapters(engine: &Engine) -> Vec<Option<Adapter>> {
    let named = |name: u8| {
        let settings = LoraConfig {
            rank: 3 + 2 * usize::from(name),
            ..support::lora_config(&Target::ALL)
        };
        let lora = support::lora_of(engine.config(), &settings);
        Some(engine.adapter(&lora).unwrap().identified([name; 32]))
    };
    vec![named(0), named(1), None]
}

/// Writes all answers together; each round passes some prompts over.
fn write(decoder: &Decoder<'_>, chunk: usize, sequences: &mut [Sequence]) -> Vec<Vec<Choice>> {
    let mut written = vec![Vec::<Choice>::new(); sequences.len()];
    for round in 0.. {
        let (mut numbers, mut shares) = (Vec::new(), Vec::new());
        for (number, sequence) in sequences.iter_mut().enumerate() {
            let has_ended = written[number]
                .last()
                .is_some_and(|last| last.end.is_some());
            let is_passed_over = (round + number) % 3 == 1;
            if has_ended || is_passed_over {
                continue;
            }
            let tokens = sequence.chunk(chunk);
            numbers.push(number);
            shares.push(Share { sequence, tokens });
        }
        let choices = decoder.run(&mut shares);
        for (number, choice) in numbers.into_iter().zip(choices) {
            written[number].extend(choice.unwrap());
        }
        let ends = written.iter().filter_map(|choices| choices.last()?.end);
        if ends.count() == written.len() {
            return written;
        }
    }
    unreachable!("rounds have no end")
}

/// Begins and writes one answer.
fn answer(
    decoder: &Decoder<'_>,
    chunk: usize,
    prompt: &[u32],
    adapter: Option<&Adapter>,
) -> (usize, Vec<Choice>) {
    let sequence = decoder.begin(prompt, adapter.cloned(), &options(7));
    let mut sequence = [sequence.unwrap()];
    let choices = write(decoder, chunk, &mut sequence).remove(0);
    (sequence[0].found(), choices)
}

/// Checks that answers are equal with and without kept beginnings, alone and together.
fn check(engine: &Engine, chunk: usize) {
    let adapters = adapters(engine);
    let lens = [1, 31, 32, 33, 96, 128, 129, 256, 257, 300, 400];
    let kinds = lens.into_iter().enumerate();
    let prompts: Vec<_> = kinds.map(|(kind, len)| prompt(len, 280, kind)).collect();
    let plain = Decoder::new(engine, None);
    let shares = Decoder::new(engine, None).sharing_prefixes();
    let of = |number: usize| adapters[number % adapters.len()].as_ref();
    let cold: Vec<_> = prompts
        .iter()
        .enumerate()
        .map(|(number, prompt)| answer(&plain, chunk, prompt, of(number)).1)
        .collect();
    engine.keep_prefixes(limits(1000, 1000));
    // The second time, all of each prompt that may be found is found.
    for time in 0..2 {
        for (number, prompt) in prompts.iter().enumerate() {
            let (found, choices) = answer(&shares, chunk, prompt, of(number));
            assert_eq!(choices, cold[number], "prompt {number}, time {time}");
            let most = (prompt.len() - 1) / PAGE * PAGE;
            assert!(found <= most && (time == 0 || found == most), "{found}");
        }
    }
    let mut together: Vec<_> = prompts
        .iter()
        .enumerate()
        .map(|(number, prompt)| shares.begin(prompt, of(number).cloned(), &options(7)))
        .map(Result::unwrap)
        .collect();
    assert_eq!(together[10].found(), 399 / PAGE * PAGE);
    assert_eq!(write(&shares, chunk, &mut together), cold, "together");
    drop(together);
    assert_eq!(engine.cached_tokens(), 0);
    assert!(engine.kept_pages() > 0);
    // Prompts that begin together find nothing, and become one where they are equal.
    engine.keep_prefixes(limits(0, 1000));
    assert_eq!(engine.kept_pages(), 0);
    engine.keep_prefixes(limits(1000, 1000));
    let begin = |_| shares.begin(&prompts[9], of(9).cloned(), &options(7));
    let mut same: Vec<_> = (0..3).map(begin).map(Result::unwrap).collect();
    assert!(same.iter().all(|sequence| sequence.found() == 0));
    for choices in write(&shares, chunk, &mut same) {
        assert_eq!(choices, cold[9]);
    }
    let (full, all) = (300 / PAGE, 305_usize.div_ceil(PAGE));
    assert_eq!(engine.cached_tokens(), (full + 3 * (all - full)) * PAGE);
    drop(same);
    // One that waits goes on after what another one has read meanwhile.
    engine.keep_prefixes(limits(0, 1000));
    engine.keep_prefixes(limits(1000, 1000));
    let mut late: Vec<_> = (0..2).map(begin).map(Result::unwrap).collect();
    while late[0].unread() > 0 {
        let (tokens, sequence) = (late[0].chunk(chunk), &mut late[0]);
        let choice = shares.run(&mut [Share { sequence, tokens }]).remove(0);
        assert!(choice.unwrap().is_none_or(|choice| choice == cold[9][0]));
    }
    assert_eq!(late[1].found(), 0);
    shares.find_prefix(&mut late[1]);
    assert_eq!(late[1].found(), 299 / PAGE * PAGE);
    assert_eq!(write(&shares, chunk, &mut late[1..])[0], cold[9]);
    drop(late);
    engine.keep_prefixes(limits(0, 0));
}

fn an_answer_is_the_same_with_a_kept_beginning(on: &On) {
    let engine = on.engine(&config());
    for chunk in [32, 48, 128] {
        check(&engine, chunk);
    }
}

#[test]
fn in_each_precision_an_answer_is_the_same_with_a_kept_beginning() {
    for (precision, engine) in in_all_precisions() {
        println!("{precision:?}");
        check(&engine, 128);
    }
}

fn a_prompt_that_is_scored_reads_all_of_its_tokens(on: &On) {
    let engine = on.engine(&config());
    engine.keep_prefixes(limits(100, 100));
    let decoder = Decoder::new(&engine, None).sharing_prefixes();
    let scored = Options {
        prompt_logprobs: Some(2),
        ..options(7)
    };
    let ids = prompt(100, 100, 0);
    let mut all = Vec::new();
    for _ in 0..2 {
        let mut sequence = [decoder.begin(&ids, None, &scored).unwrap()];
        assert_eq!(sequence[0].found(), 0);
        let choices = write(&decoder, 32, &mut sequence);
        all.push((choices, sequence[0].take_prompt_logprobs()));
    }
    assert_eq!(all[0].1.len(), 100);
    assert_eq!(all[0], all[1]);
    // What it read is found by one that is not scored.
    let (found, choices) = answer(&decoder, 32, &ids, None);
    assert_eq!((found, choices), (96, all.remove(0).0.remove(0)));
}

fn a_prompt_is_not_found_under_another_adapter(on: &On) {
    let engine = on.engine(&config());
    engine.keep_prefixes(limits(1000, 1000));
    let adapters = adapters(&engine);
    let nameless = engine.adapter(&support::lora(engine.config(), &Target::ALL));
    let nameless = nameless.unwrap();
    let (plain, chunk) = (Decoder::new(&engine, None), 32);
    let shares = Decoder::new(&engine, None).sharing_prefixes();
    let ids = prompt(200, 200, 0);
    for adapter in &adapters {
        let adapter = adapter.as_ref();
        let (_, expected) = answer(&plain, chunk, &ids, adapter);
        for found in [0, 192] {
            let answer = answer(&shares, chunk, &ids, adapter);
            assert_eq!(answer, (found, expected.clone()));
        }
    }
    for _ in 0..2 {
        assert_eq!(answer(&shares, chunk, &ids, Some(&nameless)).0, 0);
    }
    // The same values on the device a second time, under the same name.
    let again = self::adapters(&engine);
    assert_eq!(answer(&shares, chunk, &ids, again[0].as_ref()).0, 192);
    // In other chunks, the same prompt has the same values.
    let (found, other) = answer(&shares, 48, &ids, again[0].as_ref());
    assert_eq!(
        (found, other),
        (192, answer(&plain, 64, &ids, again[0].as_ref()).1)
    );
}

fn an_answer_is_the_same_after_its_beginning_was_given_away(on: &On) {
    let engine = on.engine(&config());
    let (plain, chunk) = (Decoder::new(&engine, None), 32);
    let shares = Decoder::new(&engine, None).sharing_prefixes();
    let prompts: Vec<_> = (0..6).map(|kind| prompt(300, 64, kind)).collect();
    let expected: Vec<_> = prompts
        .iter()
        .map(|prompt| answer(&plain, chunk, prompt, None).1)
        .collect();
    for (kept, pages) in [(1000, 21), (13, 1000), (3, 11)] {
        engine.keep_prefixes(limits(kept, pages));
        for _ in 0..2 {
            for (prompt, expected) in prompts.iter().zip(&expected) {
                let (found, choices) = answer(&shares, chunk, prompt, None);
                assert_eq!(&choices, expected, "{found} of at most {kept} and {pages}");
                assert!(engine.kept_pages() <= kept.min(pages));
            }
        }
        // Two prompts at once need more than is left beside kept pages.
        let mut both: Vec<_> = prompts[..2]
            .iter()
            .map(|prompt| shares.begin(prompt, None, &options(7)).unwrap())
            .collect();
        assert_eq!(write(&shares, chunk, &mut both), expected[..2]);
        // The last is the first to be found again.
        drop(both);
        assert!(answer(&shares, chunk, &prompts[1], None).0 > 0);
        engine.keep_prefixes(limits(0, 0));
        assert_eq!((engine.kept_pages(), engine.cached_tokens()), (0, 0));
    }
}

fn a_fork_writes_the_answer_of_its_seed_alone(on: &On) {
    let engine = on.engine(&config());
    let adapters = adapters(&engine);
    let (decoder, chunk) = (Decoder::new(&engine, None), 128);
    for (len, adapter) in [(1, 0), (64, 2), (100, 1), (200, 0), (256, 2)] {
        let adapter = adapters[adapter].as_ref();
        let ids = prompt(len, len, 0);
        let begin = |seed| decoder.begin(&ids, adapter.cloned(), &options(seed));
        let expected: Vec<_> = (0..5)
            .map(|seed| write(&decoder, chunk, &mut [begin(seed).unwrap()]).remove(0))
            .collect();
        let mut leader = begin(0).unwrap();
        leader.keep_for_forks();
        assert!(decoder.fork(&leader, &options(1)).is_err());
        let mut choice = None;
        while choice.is_none() {
            let tokens = leader.chunk(chunk);
            let sequence = &mut leader;
            let share = Share { sequence, tokens };
            choice = decoder.run(&mut [share]).remove(0).unwrap();
        }
        let mut written = vec![choice.unwrap()];
        let mut all = vec![leader];
        for seed in 1..5 {
            let (fork, choice) = decoder.fork(&all[0], &options(seed)).unwrap();
            written.push(choice);
            all.push(fork);
        }
        let (full, of_each) = (len / PAGE, (len % PAGE).div_ceil(PAGE));
        assert_eq!(engine.cached_tokens(), (full + 5 * of_each) * PAGE);
        // The first ends before the others.
        let rest = write(&decoder, chunk, &mut all[..1]).remove(0);
        assert_eq!(rest.last().unwrap().end, Some(End::Length));
        assert_eq!([&written[..1], &rest].concat(), expected[0]);
        assert!(decoder.fork(&all[0], &options(1)).is_err());
        drop(all.remove(0));
        let rest = write(&decoder, chunk, &mut all);
        for (seed, rest) in (1..).zip(rest) {
            assert_eq!([&written[seed..=seed], &rest].concat(), expected[seed]);
        }
        drop(all);
        assert_eq!(engine.cached_tokens(), 0);
    }
}
