//! The candidates of transformers' `generate`, their probabilities, its greedy answers, and the
//! log-probabilities of prompts and answers.

use std::collections::BTreeMap;

use serde::Deserialize;
use togi_model::decode::{Decoder, Share};
use togi_model::logprobs::Logprobs;
use togi_model::sampling::{Options, Sampler};

use crate::fixtures::{self, Tensors, path, workspace};

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
    greedy: Vec<Greedy>,
    logprobs: Told,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    history: Vec<u32>,
    options: Changes,
    /// Tokens of the history that are the prompt; all if not set.
    prompt: Option<usize>,
    /// The tokens that end an answer.
    #[serde(default)]
    eos: Vec<u32>,
}

/// The options that are on.
#[derive(Deserialize)]
struct Changes {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    no_repeat_ngram_size: Option<u32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    #[serde(default)]
    logit_bias: BTreeMap<u32, f32>,
    min_new_tokens: Option<u32>,
}

impl Changes {
    fn options(&self) -> Options {
        Options {
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            no_repeat_ngram_size: self.no_repeat_ngram_size.unwrap_or(0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            logit_bias: self.logit_bias.clone(),
            min_new_tokens: self.min_new_tokens.unwrap_or(0),
            ..Options::default()
        }
    }
}

#[derive(Deserialize)]
struct Greedy {
    prompt: Vec<u32>,
    ngram: u32,
    answer: Vec<u32>,
}

/// A greedy answer's start, with the log-probabilities of every token but the prompt's first.
#[derive(Deserialize)]
struct Told {
    prompt: Vec<u32>,
    ngram: u32,
    tokens: Vec<Token>,
}

#[derive(Deserialize)]
struct Token {
    id: u32,
    logprob: f32,
    top: Vec<(u32, f32)>,
}

/// One probability for each id, -1 where the id is not a candidate, as in the fixture.
fn probabilities(case: &Case, tensors: &Tensors) -> Vec<f32> {
    let scores = tensors.get(&format!("logits.{}", case.name));
    let mut logits = scores.unwrap_or(&tensors["recorded"]).1.clone();
    let mut row = vec![-1.0; logits.len()];
    let (prompt, answer) = case
        .history
        .split_at(case.prompt.unwrap_or(case.history.len()));
    let mut sampler = Sampler::new(&case.options.options(), &case.eos, prompt).unwrap();
    for &id in answer {
        sampler.push(id);
    }
    match sampler.distribution(&mut logits) {
        Ok(candidates) => {
            let sorted = candidates.is_sorted_by(|a, b| a.probability >= b.probability);
            assert!(sorted, "{}: the likeliest comes first", case.name);
            for candidate in candidates {
                row[candidate.id as usize] = candidate.probability as f32;
            }
        }
        // There is no candidate.
        Err(error) => assert!(error.to_string().contains("no token is left"), "{error}"),
    }
    row
}

#[test]
fn kept_tokens_and_probabilities_are_those_of_transformers() {
    let fixture: Fixture = fixtures::json("generation.json");
    let tensors = fixtures::tensors(&path("generation.safetensors"));
    assert!(fixture.cases.len() > 50, "{} cases", fixture.cases.len());
    for case in &fixture.cases {
        let want = &tensors[&format!("probabilities.{}", case.name)].1;
        let got = probabilities(case, &tensors);
        let kept =
            |row: &[f32]| -> Vec<usize> { (0..row.len()).filter(|&id| row[id] >= 0.0).collect() };
        assert_eq!(kept(&got), kept(want), "{}", case.name);
        fixtures::assert_near(&got, want, 1e-5, &case.name);
    }
}

#[test]
fn greedy_answers_are_those_of_transformers_for_256_tokens() {
    let fixture: Fixture = fixtures::json("generation.json");
    let engine = fixtures::load(&workspace().join("demo/base"));
    assert_eq!(
        fixture.greedy.len(),
        8,
        "four prompts, with the ban and without"
    );
    for Greedy {
        prompt,
        ngram,
        answer,
    } in fixture.greedy
    {
        assert_eq!(answer.len(), 256);
        let options = Options {
            greedy: true,
            no_repeat_ngram_size: ngram,
            ..Options::default()
        };
        let decoder = Decoder::new(&engine, None);
        let mut sequence = decoder.begin(&prompt, None, &options).unwrap();
        let mut got = Vec::new();
        while got.len() < answer.len() {
            let tokens = prompt.len();
            let sequence = &mut sequence;
            let choices = decoder.run(&mut [Share { sequence, tokens }]);
            got.extend(choices.into_iter().filter_map(Result::unwrap).map(|c| c.id));
        }
        assert_eq!(got, answer, "ban of {ngram}, prompt {prompt:?}");
    }
}

#[test]
fn log_probabilities_of_prompt_and_answer_are_those_of_torch() {
    let fixture: Fixture = fixtures::json("generation.json");
    let Told {
        prompt,
        ngram,
        tokens,
    } = fixture.logprobs;
    let engine = fixtures::load(&workspace().join("demo/base"));
    let options = Options {
        greedy: true,
        no_repeat_ngram_size: ngram,
        logprobs: Some(5),
        prompt_logprobs: Some(5),
        ..Options::default()
    };
    let decoder = Decoder::new(&engine, None);
    // The prompt's first token follows nothing.
    let count = tokens.len() + 1;
    for chunk in [prompt.len(), 3] {
        let mut sequence = decoder.begin(&prompt, None, &options).unwrap();
        let mut got: Vec<Logprobs> = Vec::new();
        while got.len() < count {
            let share = Share {
                sequence: &mut sequence,
                tokens: chunk,
            };
            let choice = decoder.run(&mut [share]).remove(0).unwrap();
            got.extend(sequence.take_prompt_logprobs());
            got.extend(choice.and_then(|choice| choice.logprobs));
        }
        let first = got.remove(0);
        assert_eq!((first.id, first.logprob), (prompt[0], None));
        for (got, want) in got.iter().zip(&tokens) {
            assert_eq!(got.id, want.id);
            let logprob = got.logprob.unwrap();
            let near = |got: f32, want: f32| (got - want).abs() < 1e-4;
            assert!(near(logprob, want.logprob), "{logprob} {}", want.logprob);
            let pairs = got.best.iter().zip(&want.top);
            assert_eq!(got.best.len(), want.top.len());
            for (likely, &(id, top)) in pairs {
                assert_eq!(likely.id, id);
                assert!(near(likely.logprob, top), "{} {top}", likely.logprob);
                assert!(likely.id != got.id || likely.logprob == logprob);
            }
        }
    }
}
