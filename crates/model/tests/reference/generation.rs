//! The candidates of transformers' `generate`, their probabilities, and its greedy answers.

use serde::Deserialize;
use togi_model::decode::{Decoder, Share};
use togi_model::sampling::{Options, Sampler};

use crate::fixtures::{self, Tensors, path, workspace};

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
    greedy: Vec<Greedy>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    history: Vec<u32>,
    options: Changes,
}

/// The options that are on.
#[derive(Deserialize)]
struct Changes {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    no_repeat_ngram_size: Option<u32>,
    repetition_penalty: Option<f32>,
}

impl Changes {
    fn options(&self) -> Options {
        Options {
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            no_repeat_ngram_size: self.no_repeat_ngram_size.unwrap_or(0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
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

/// One probability for each id, -1 where the id is not a candidate, as in the fixture.
fn probabilities(case: &Case, tensors: &Tensors) -> Vec<f32> {
    let scores = tensors.get(&format!("logits.{}", case.name));
    let mut logits = scores.unwrap_or(&tensors["recorded"]).1.clone();
    let mut row = vec![-1.0; logits.len()];
    let sampler = Sampler::new(&case.options.options(), &case.history).unwrap();
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
    assert!(fixture.cases.len() > 40, "{} cases", fixture.cases.len());
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
