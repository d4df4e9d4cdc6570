//! Chooses a token from logits: processors and warpers with the order and meaning of transformers'
//! `generate`.

mod logits;
mod options;
mod process;
mod warp;

use crate::error::{Error, Result};
use crate::random;
use logits::Row;
pub use logits::{Highest, Logits};
pub use options::{Candidate, Options};
use process::Past;

/// The largest `top_k` for which the highest logits that a device tells mostly suffice.
const MOST_DRAWN: u32 = 64;

/// Chooses the tokens of one answer.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: Options,
    history: Vec<u32>,
    prompt: usize,
    ends: Vec<u32>,
}

impl Sampler {
    /// A sampler that has seen the prompt, for a model whose answers end with any of `eos`.
    ///
    /// # Errors
    /// As [`Options::validate`].
    pub fn new(options: &Options, eos: &[u32], prompt: &[u32]) -> Result<Self> {
        options.validate()?;
        let eos = if options.ignore_eos { &[] } else { eos };
        Ok(Self {
            options: options.clone(),
            history: prompt.to_vec(),
            prompt: prompt.len(),
            ends: [eos, &options.stop_token_ids].concat(),
        })
    }

    /// Prompt and answer so far.
    #[must_use]
    pub fn history(&self) -> &[u32] {
        &self.history
    }

    /// The prompt.
    pub(crate) fn prompt(&self) -> &[u32] {
        &self.history[..self.prompt]
    }

    /// Tokens of the prompt.
    #[must_use]
    pub fn prompt_len(&self) -> usize {
        self.prompt
    }

    /// Tokens of the answer so far.
    #[must_use]
    pub fn generated(&self) -> usize {
        self.history.len() - self.prompt
    }

    /// Whether a token ends the answer: EOS, or one of `stop_token_ids`.
    #[must_use]
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Appends a token of the answer.
    pub fn push(&mut self, id: u32) {
        self.history.push(id);
    }

    /// Chooses the next token and appends it to the history. `logits` are changed in place.
    ///
    /// # Errors
    /// As [`Sampler::distribution`].
    pub fn next(&mut self, logits: &mut [f32]) -> Result<u32> {
        let candidates = self.distribution(logits)?;
        Ok(self.draw(&candidates))
    }

    /// Whether the highest logits mostly decide about the next token: nothing raises a logit, and
    /// few tokens are drawn from.
    #[must_use]
    pub fn takes_highest(&self) -> bool {
        let options = &self.options;
        let counts = options.is_greedy() || (1..=MOST_DRAWN).contains(&options.top_k);
        counts && options.logprobs.is_none() && options.only_lowers()
    }

    /// [`Sampler::next`] of the highest logits; `None` if they do not decide, because processors
    /// lowered too many of them.
    ///
    /// # Errors
    /// As [`Sampler::distribution`].
    pub(crate) fn next_of_highest(&mut self, highest: &mut Highest) -> Result<Option<u32>> {
        self.process(highest);
        let drawn_from = match self.options.is_greedy() {
            true => 1,
            false => self.options.top_k as usize,
        };
        if !highest.has_highest(drawn_from) {
            return Ok(None);
        }
        let candidates = self.candidates(highest)?;
        Ok(Some(self.draw(&candidates)))
    }

    fn draw(&mut self, candidates: &[Candidate]) -> u32 {
        let mut left = random::unit(self.options.seed, self.generated() as u64);
        let drawn = candidates.iter().find(|candidate| {
            left -= candidate.probability;
            left < 0.0
        });
        // There is always a candidate. Rounding may leave the sum just below 1.
        let id = drawn.unwrap_or(&candidates[candidates.len() - 1]).id;
        self.push(id);
        id
    }

    /// Returns the tokens that [`Sampler::next`] draws from, the likeliest first; a greedy sampler
    /// has one. `logits` are changed in place: by bias, penalties and bans.
    ///
    /// # Errors
    /// A logit is NaN, or the bans leave no token. (transformers would draw from NaN, or greedily
    /// take a banned token.)
    pub fn distribution(&self, logits: &mut [f32]) -> Result<Vec<Candidate>> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::Input("the logits are not numbers".into()));
        }
        self.process(logits);
        self.candidates(logits)
    }

    fn process(&self, logits: &mut (impl Row + ?Sized)) {
        let past = Past {
            history: &self.history,
            prompt: self.prompt,
            ends: &self.ends,
        };
        process::process(logits, &self.options, past);
    }

    /// The tokens to draw from, of processed logits.
    fn candidates(&self, logits: &(impl Row + ?Sized)) -> Result<Vec<Candidate>> {
        let candidates = if self.options.is_greedy() {
            likeliest(logits).into_iter().collect()
        } else {
            warp::candidates(logits, &self.options)
        };
        if candidates.is_empty() {
            return Err(Error::Input("no token is left to choose from".into()));
        }
        Ok(candidates)
    }
}

/// The token with the highest logit, the first of equals; `None` if every logit is minus infinity.
fn likeliest(logits: &(impl Row + ?Sized)) -> Option<Candidate> {
    let mut best: Option<(u32, f32)> = None;
    for (id, logit) in logits.pairs() {
        if logit > best.map_or(f32::NEG_INFINITY, |(_, highest)| highest) {
            best = Some((id, logit));
        }
    }
    best.map(|(id, _)| Candidate {
        id,
        probability: 1.0,
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn plain() -> Options {
        Options {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            no_repeat_ngram_size: 0,
            ..Options::default()
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let mut sampler = Sampler::new(
            &Options {
                greedy: true,
                ..plain()
            },
            &[],
            &[0],
        )
        .unwrap();
        assert_eq!(sampler.next(&mut [0.0, 2.0, 2.0]).unwrap(), 1);
    }

    #[test]
    fn ngrams_of_prompt_and_answer_do_not_come_back() {
        let options = Options {
            greedy: true,
            no_repeat_ngram_size: 2,
            ..plain()
        };
        let mut sampler = Sampler::new(&options, &[], &[1, 2, 1]).unwrap();
        // (1, 2) is in the prompt, so 2 is banned; then (1, 0) is in the answer.
        assert_eq!(sampler.next(&mut [1.0, 0.0, 5.0]).unwrap(), 0);
        assert_eq!(sampler.next(&mut [0.0, 1.0, 0.5]).unwrap(), 1);
        assert!(
            sampler.next(&mut [3.0, f32::NEG_INFINITY, 2.0]).is_err(),
            "every token is banned"
        );
    }

    #[test]
    fn unigram_ban_forbids_all_seen_tokens() {
        let options = Options {
            greedy: true,
            no_repeat_ngram_size: 1,
            ..plain()
        };
        let mut sampler = Sampler::new(&options, &[], &[0, 1]).unwrap();
        assert_eq!(sampler.next(&mut [9.0, 8.0, -1.0]).unwrap(), 2);
    }

    #[test]
    fn draws_repeat_for_a_seed_and_follow_the_probabilities() {
        let mut counts = [0u32; 3];
        for seed in 0..4000 {
            let options = Options { seed, ..plain() };
            let mut logits = [0.0, 2.0f32.ln(), f32::NEG_INFINITY];
            let first = Sampler::new(&options, &[], &[])
                .unwrap()
                .next(&mut logits.clone())
                .unwrap();
            assert_eq!(
                first,
                Sampler::new(&options, &[], &[])
                    .unwrap()
                    .next(&mut logits)
                    .unwrap()
            );
            counts[first as usize] += 1;
        }
        assert_eq!(counts[2], 0);
        assert!(
            (1200..1470).contains(&counts[0]),
            "a third of 4000 is expected: {counts:?}"
        );
    }

    proptest! {
        /// Whatever lowers logits: the highest ones decide as all of them would, or say that they
        /// do not.
        #[test]
        fn the_highest_logits_decide_as_all_would(
            logits in vec(-8_i32..8, 40),
            history in vec(0_u32..40, 0..12),
            told in 1_usize..40,
            (greedy, top_k, top_p) in (any::<bool>(), 1_u32..8, 0.0_f32..1.0),
            (size, penalty, frequency) in (0_u32..3, 1.0_f32..2.0, 0.0_f32..2.0),
            seed in any::<u64>(),
        ) {
            let options = Options {
                greedy,
                top_k,
                top_p,
                no_repeat_ngram_size: size,
                repetition_penalty: penalty,
                frequency_penalty: frequency,
                seed,
                ..plain()
            };
            let sampler = Sampler::new(&options, &[], &history).unwrap();
            prop_assert!(sampler.takes_highest());
            let logits: Vec<f32> = logits.iter().map(|&logit| logit as f32 / 2.0).collect();
            let mut sorted = logits.clone();
            sorted.sort_by(f32::total_cmp);
            let border = sorted[sorted.len() - told];
            let high = logits.pairs().filter(|&(_, logit)| logit >= border);
            let mut highest = Highest::new(high.collect());
            let found = sampler.clone().next_of_highest(&mut highest);
            match found {
                Ok(Some(id)) => {
                    prop_assert_eq!(id, sampler.clone().next(&mut logits.clone()).unwrap());
                }
                Ok(None) => {}
                Err(_) => prop_assert!(sampler.clone().next(&mut logits.clone()).is_err()),
            }
        }
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        assert!(
            Sampler::new(&plain(), &[], &[])
                .unwrap()
                .next(&mut [0.0, f32::NAN])
                .is_err()
        );
    }
}
