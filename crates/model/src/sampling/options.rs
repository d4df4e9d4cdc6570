//! The choices of a caller, checked, and the result of one draw.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::error::{Error, Result};

/// Presence and frequency penalties.
const PENALTIES: RangeInclusive<f32> = -2.0..=2.0;
/// Biases of a logit.
const BIASES: RangeInclusive<f32> = -100.0..=100.0;
/// Most tokens with a bias.
const MAX_BIASES: usize = 1024;
/// Most tokens that end the answer beside EOS.
const MAX_STOP_TOKENS: usize = 64;
/// Most tokens whose log-probabilities are reported at one place.
const MAX_LOGPROBS: u32 = 20;

/// How to choose tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// The share of probability to draw from; 0 for the likeliest token alone, 1 for all.
    pub top_p: f32,
    /// The count of likeliest tokens to draw from; 0 for all.
    pub top_k: u32,
    /// No n-gram of this size occurs twice in prompt and answer; 0 for no ban.
    pub no_repeat_ngram_size: u32,
    /// Weakens tokens that prompt or answer already have; over 0, 1 for none.
    pub repetition_penalty: f32,
    /// Is subtracted from the logit of each token that the answer has; from -2 to 2, 0 for none.
    pub presence_penalty: f32,
    /// Is subtracted from a token's logit for each time that the answer has it; from -2 to 2, 0 for
    /// none.
    pub frequency_penalty: f32,
    /// Is added to the logits of these tokens, before all else; at most 1024, from -100 to 100.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Most tokens of the answer; over 0.
    pub max_new_tokens: u32,
    /// Tokens of the answer before which none ends it; at most `max_new_tokens`.
    pub min_new_tokens: u32,
    /// EOS is a token like others: it ends nothing and may come early.
    pub ignore_eos: bool,
    /// Tokens that end the answer as EOS does, also if EOS is ignored; at most 64.
    pub stop_token_ids: Vec<u32>,
    /// Report the log-probability of each token of the answer, and those of this many likeliest
    /// tokens; at most 20.
    pub logprobs: Option<u32>,
    /// Likewise for the tokens of the prompt.
    pub prompt_logprobs: Option<u32>,
    /// Seed of the draw.
    pub seed: u64,
    /// Always the likeliest token: temperature, `top_p`, `top_k` and seed are not used.
    pub greedy: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            temperature: 0.7,
            top_p: 0.75,
            top_k: 40,
            no_repeat_ngram_size: 2,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            max_new_tokens: 256,
            min_new_tokens: 0,
            ignore_eos: false,
            stop_token_ids: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            seed: 0,
            greedy: false,
        }
    }
}

impl Options {
    /// Checks every field but for the ids, which [`Options::check_ids`] checks.
    ///
    /// # Errors
    /// [`Error::Field`] that names the first field out of its range.
    pub fn validate(&self) -> Result<()> {
        if self.temperature != 0.0 {
            check_positive(
                "temperature",
                self.temperature,
                "must be 0, which is greedy, or at least 1.2e-38",
            )?;
        }
        check_range("top_p", self.top_p, &(0.0..=1.0))?;
        check_positive(
            "repetition_penalty",
            self.repetition_penalty,
            "must be over 0",
        )?;
        check_range("presence_penalty", self.presence_penalty, &PENALTIES)?;
        check_range("frequency_penalty", self.frequency_penalty, &PENALTIES)?;
        check_count("logit_bias", self.logit_bias.len(), MAX_BIASES)?;
        for &bias in self.logit_bias.values() {
            check_range("logit_bias", bias, &BIASES)?;
        }
        if self.max_new_tokens == 0 {
            return Err(Error::field("max_new_tokens", "must be at least 1"));
        }
        if self.min_new_tokens > self.max_new_tokens {
            let reason = format!(
                "must be at most max_new_tokens, which is {}, not {}",
                self.max_new_tokens, self.min_new_tokens
            );
            return Err(Error::field("min_new_tokens", reason));
        }
        check_count("stop_token_ids", self.stop_token_ids.len(), MAX_STOP_TOKENS)?;
        for (field, count) in [
            ("logprobs", self.logprobs),
            ("prompt_logprobs", self.prompt_logprobs),
        ] {
            if let Some(count) = count.filter(|&count| count > MAX_LOGPROBS) {
                let reason = format!("must be from 0 to {MAX_LOGPROBS}, not {count}");
                return Err(Error::field(field, reason));
            }
        }
        Ok(())
    }

    /// Checks the tokens that are named by id against a vocabulary.
    ///
    /// # Errors
    /// [`Error::Field`] that names the field and the first id outside.
    pub fn check_ids(&self, vocab_size: usize) -> Result<()> {
        let biased = self.logit_bias.keys().map(|id| ("logit_bias", id));
        let stops = self.stop_token_ids.iter().map(|id| ("stop_token_ids", id));
        for (field, id) in biased.chain(stops) {
            if *id as usize >= vocab_size {
                let reason = format!("{id} is no token of the vocabulary, which has {vocab_size}");
                return Err(Error::field(field, reason));
            }
        }
        Ok(())
    }

    /// Whether no bias and no penalty raises a logit.
    pub(super) fn only_lowers(&self) -> bool {
        let raises = self.logit_bias.values().any(|&bias| bias > 0.0)
            || self.repetition_penalty < 1.0
            || self.presence_penalty < 0.0
            || self.frequency_penalty < 0.0;
        !raises
    }

    /// Whether the likeliest token is taken.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.greedy || self.temperature == 0.0
    }
}

fn check_positive(field: &'static str, value: f32, reason: &str) -> Result<()> {
    if !value.is_finite() {
        return Err(Error::field(field, format!("must be finite, not {value}")));
    }
    // Divided by less than the smallest normal number, logits overflow.
    if value < f32::MIN_POSITIVE {
        return Err(Error::field(field, format!("{reason}, not {value}")));
    }
    Ok(())
}

fn check_range(field: &'static str, value: f32, range: &RangeInclusive<f32>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let (lowest, highest) = (range.start(), range.end());
    let reason = format!("must be from {lowest} to {highest}, not {value}");
    Err(Error::field(field, reason))
}

fn check_count(field: &'static str, count: usize, most: usize) -> Result<()> {
    if count <= most {
        return Ok(());
    }
    Err(Error::field(
        field,
        format!("at most {most} tokens, not {count}"),
    ))
}

/// A token that may come next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// The probability that it is drawn; those of all candidates add up to 1.
    pub probability: f64,
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn options_out_of_range_are_refused_by_name() {
        type Set = fn(&mut Options);
        let table: &[(&str, Set)] = &[
            ("temperature", |o| o.temperature = f32::NAN),
            ("temperature", |o| o.temperature = f32::INFINITY),
            ("temperature", |o| o.temperature = -1.0),
            ("temperature", |o| o.temperature = 1e-40),
            ("top_p", |o| o.top_p = f32::NAN),
            ("top_p", |o| o.top_p = -0.1),
            ("top_p", |o| o.top_p = 1.1),
            ("repetition_penalty", |o| {
                o.repetition_penalty = f32::INFINITY;
            }),
            ("repetition_penalty", |o| o.repetition_penalty = 0.0),
            ("presence_penalty", |o| o.presence_penalty = f32::NAN),
            ("presence_penalty", |o| o.presence_penalty = -2.1),
            ("frequency_penalty", |o| o.frequency_penalty = 2.1),
            ("logit_bias", |o| {
                o.logit_bias = BTreeMap::from([(0, f32::NAN)]);
            }),
            ("logit_bias", |o| {
                o.logit_bias = (0..1025).map(|id| (id, 1.0)).collect();
            }),
            ("max_new_tokens", |o| o.max_new_tokens = 0),
            ("min_new_tokens", |o| o.min_new_tokens = 257),
            ("stop_token_ids", |o| o.stop_token_ids = vec![0; 65]),
            ("logprobs", |o| o.logprobs = Some(21)),
            ("prompt_logprobs", |o| o.prompt_logprobs = Some(21)),
        ];
        for (expected, set) in table {
            let mut options = Options::default();
            set(&mut options);
            let Err(Error::Field { field, .. }) = options.validate() else {
                panic!("{options:?} passed");
            };
            assert_eq!(field, *expected);
        }
        Options::default().validate().unwrap();
    }

    #[test]
    fn temperature_zero_is_greedy_and_has_no_sign() {
        for temperature in [0.0, -0.0] {
            let options = Options {
                temperature,
                ..Options::default()
            };
            options.validate().unwrap();
            assert!(options.is_greedy());
        }
        assert!(!Options::default().is_greedy());
    }

    proptest! {
        #[test]
        fn what_is_within_the_limits_passes(
            presence_penalty in PENALTIES,
            frequency_penalty in PENALTIES,
            logit_bias in btree_map(0..100u32, BIASES, 0..100),
            new_tokens in 1..1000u32,
            logprobs in proptest::option::of(0..=MAX_LOGPROBS),
        ) {
            let options = Options {
                presence_penalty,
                frequency_penalty,
                logit_bias,
                max_new_tokens: new_tokens,
                min_new_tokens: new_tokens,
                logprobs,
                prompt_logprobs: logprobs,
                ..Options::default()
            };
            prop_assert!(options.validate().is_ok());
            prop_assert!(options.check_ids(100).is_ok());
        }

        #[test]
        fn an_id_outside_the_vocabulary_is_refused_by_its_field(id in 100..=u32::MAX) {
            let biased = Options { logit_bias: BTreeMap::from([(id, 1.0)]), ..Options::default() };
            let ended = Options { stop_token_ids: vec![1, id], ..Options::default() };
            for (expected, options) in [("logit_bias", biased), ("stop_token_ids", ended)] {
                let Err(Error::Field { field, reason }) = options.check_ids(100) else {
                    return Err(TestCaseError::fail(format!("{options:?} passed")));
                };
                prop_assert_eq!(field, expected);
                prop_assert!(reason.contains(&id.to_string()));
            }
        }
    }
}
