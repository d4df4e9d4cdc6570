//! The options of a request, checked field by field. Code behind this type does not check again.

use togi_model::sampling;

use crate::error::{Error, Result};

/// Most stop texts of a request.
pub(crate) const MAX_STOPS: usize = 8;
/// Longest stop text, in bytes.
pub(crate) const MAX_STOP_BYTES: usize = 256;
/// Most answers to one request.
pub(crate) const MAX_CHOICES: u32 = 8;

/// Valid options.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Options {
    /// How tokens are drawn, and the most of them.
    pub(crate) sampling: sampling::Options,
    /// Texts that end the answer.
    pub(crate) stop: Vec<String>,
    /// Answers to the prompt, from 1 to [`MAX_CHOICES`].
    pub(crate) choices: u32,
}

impl Options {
    /// Checks these options, for a model with this vocabulary.
    ///
    /// # Errors
    /// [`Error::Field`] naming the first wrong field by its path in the request.
    pub(crate) fn checked(self, vocab_size: usize) -> Result<Self> {
        let named = |error| match error {
            togi_model::Error::Field { field, reason } => {
                Error::field(format!("options.{field}"), reason)
            }
            other => Error::Network(other),
        };
        self.sampling.validate().map_err(named)?;
        self.sampling.check_ids(vocab_size).map_err(named)?;
        check_stops(&self.stop)?;
        if !(1..=MAX_CHOICES).contains(&self.choices) {
            let reason = format!("must be from 1 to {MAX_CHOICES}, not {}", self.choices);
            return Err(Error::field("options.n", reason));
        }
        Ok(self)
    }

    /// Returns the options of one of the answers. The prompt's log-probabilities are told once,
    /// with the first.
    pub(crate) fn of_choice(&self, choice: u32) -> Self {
        let mut options = self.clone();
        options.sampling.seed = self.sampling.seed.wrapping_add(choice.into());
        if choice > 0 {
            options.sampling.prompt_logprobs = None;
        }
        options
    }
}

fn check_stops(stops: &[String]) -> Result<()> {
    if stops.len() > MAX_STOPS {
        let reason = format!("at most {MAX_STOPS} texts, not {}", stops.len());
        return Err(Error::field("options.stop", reason));
    }
    for stop in stops {
        if stop.is_empty() {
            return Err(Error::field(
                "options.stop",
                "a stop text must not be empty",
            ));
        }
        if stop.len() > MAX_STOP_BYTES {
            let reason = format!("at most {MAX_STOP_BYTES} bytes a text, not {}", stop.len());
            return Err(Error::field("options.stop", reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens of the vocabulary.
    const VOCABULARY: usize = 100;

    fn options() -> Options {
        Options {
            sampling: sampling::Options::default(),
            stop: Vec::new(),
            choices: 1,
        }
    }

    #[test]
    fn each_wrong_option_is_refused_by_its_name() {
        type Set = fn(&mut Options);
        let table: &[(&str, Set)] = &[
            ("options.temperature", |o| o.sampling.temperature = f32::NAN),
            ("options.temperature", |o| {
                o.sampling.temperature = f32::INFINITY;
            }),
            ("options.temperature", |o| o.sampling.temperature = -1.0),
            ("options.temperature", |o| o.sampling.temperature = 1e-40),
            ("options.top_p", |o| o.sampling.top_p = f32::NAN),
            ("options.top_p", |o| o.sampling.top_p = -0.1),
            ("options.top_p", |o| o.sampling.top_p = 1.0001),
            ("options.repetition_penalty", |o| {
                o.sampling.repetition_penalty = f32::NAN;
            }),
            ("options.repetition_penalty", |o| {
                o.sampling.repetition_penalty = 0.0;
            }),
            ("options.max_new_tokens", |o| o.sampling.max_new_tokens = 0),
            ("options.stop", |o| o.stop = vec![String::new()]),
            ("options.stop", |o| o.stop = vec!["x".repeat(257)]),
            ("options.stop", |o| o.stop = vec!["x".into(); 9]),
            ("options.presence_penalty", |o| {
                o.sampling.presence_penalty = 2.5;
            }),
            ("options.frequency_penalty", |o| {
                o.sampling.frequency_penalty = f32::NAN;
            }),
            ("options.logit_bias", |o| {
                o.sampling.logit_bias.insert(1, 101.0);
            }),
            ("options.logit_bias", |o| {
                o.sampling.logit_bias.insert(100, 1.0);
            }),
            ("options.min_new_tokens", |o| {
                o.sampling.min_new_tokens = o.sampling.max_new_tokens + 1;
            }),
            ("options.stop_token_ids", |o| {
                o.sampling.stop_token_ids = vec![100];
            }),
            ("options.logprobs", |o| o.sampling.logprobs = Some(21)),
            ("options.prompt_logprobs", |o| {
                o.sampling.prompt_logprobs = Some(21);
            }),
            ("options.n", |o| o.choices = 0),
            ("options.n", |o| o.choices = 9),
            // Also checked where greedy decoding does not use them.
            ("options.top_p", |o| {
                o.sampling.top_p = 2.0;
                o.sampling.greedy = true;
            }),
        ];
        for (expected, set) in table {
            let mut options = options();
            set(&mut options);
            let shown = format!("{options:?}");
            match options.checked(VOCABULARY) {
                Err(Error::Field { field, .. }) => assert_eq!(field, *expected, "{shown}"),
                other => panic!("{shown} gave {other:?}"),
            }
        }
    }

    #[test]
    fn limits_themselves_are_allowed() {
        for top_p in [0.0, 1.0] {
            let sampling = sampling::Options {
                top_p,
                top_k: 0,
                no_repeat_ngram_size: 0,
                max_new_tokens: 1,
                ..Default::default()
            };
            let options = Options {
                sampling,
                stop: vec!["x".repeat(256); 8],
                choices: 8,
            };
            options.checked(VOCABULARY).unwrap();
        }
    }

    #[test]
    fn each_answer_has_its_seed_and_the_first_tells_of_the_prompt() {
        let mut options = options();
        options.sampling.seed = u64::MAX;
        options.sampling.prompt_logprobs = Some(2);
        let first = options.of_choice(0);
        assert_eq!(first, options);
        let third = options.of_choice(2).sampling;
        assert_eq!((third.seed, third.prompt_logprobs), (1, None));
    }
}
