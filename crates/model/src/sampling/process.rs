//! What changes the logits before a token is drawn, in the order of transformers' `generate`.
//!
//! Presence and frequency penalties are OpenAI's, which transformers does not have. They follow the
//! repetition penalty, as in vLLM.

use std::collections::BTreeMap;

use super::logits::Row;
use super::options::Options;

/// The tokens that the processors look at.
#[derive(Clone, Copy)]
pub(super) struct Past<'a> {
    /// Prompt and answer.
    pub(super) history: &'a [u32],
    /// Tokens of the prompt.
    pub(super) prompt: usize,
    /// Tokens that end the answer.
    pub(super) ends: &'a [u32],
}

/// Changes the logits in place.
pub(super) fn process(logits: &mut (impl Row + ?Sized), options: &Options, past: Past<'_>) {
    let answer = &past.history[past.prompt..];
    add_bias(logits, &options.logit_bias);
    penalize_repetition(logits, options.repetition_penalty, past.history);
    penalize_frequency(logits, options, answer);
    ban_ngrams(logits, options.no_repeat_ngram_size as usize, past.history);
    if answer.len() < options.min_new_tokens as usize {
        for &end in past.ends {
            ban(logits, end);
        }
    }
}

fn add_bias(logits: &mut (impl Row + ?Sized), biases: &BTreeMap<u32, f32>) {
    for (&id, bias) in biases {
        if let Some(logit) = logits.get_mut(id) {
            *logit += bias;
        }
    }
}

fn penalize_repetition(logits: &mut (impl Row + ?Sized), penalty: f32, history: &[u32]) {
    if penalty.to_bits() == 1.0f32.to_bits() {
        return;
    }
    for (id, _) in counts(history) {
        if let Some(logit) = logits.get_mut(id) {
            *logit = if *logit < 0.0 {
                *logit * penalty
            } else {
                *logit / penalty
            };
        }
    }
}

fn penalize_frequency(logits: &mut (impl Row + ?Sized), options: &Options, answer: &[u32]) {
    let (presence, frequency) = (options.presence_penalty, options.frequency_penalty);
    if presence == 0.0 && frequency == 0.0 {
        return;
    }
    for (id, count) in counts(answer) {
        if let Some(logit) = logits.get_mut(id) {
            *logit -= frequency * count as f32;
            *logit -= presence;
        }
    }
}

fn ban_ngrams(logits: &mut (impl Row + ?Sized), size: usize, history: &[u32]) {
    if size == 0 || history.len() + 1 < size {
        return;
    }
    let tail = &history[history.len() + 1 - size..];
    for ngram in history.windows(size) {
        if &ngram[..size - 1] == tail {
            ban(logits, ngram[size - 1]);
        }
    }
}

fn ban(logits: &mut (impl Row + ?Sized), id: u32) {
    if let Some(logit) = logits.get_mut(id) {
        *logit = f32::NEG_INFINITY;
    }
}

/// How often each token occurs.
fn counts(ids: &[u32]) -> Vec<(u32, usize)> {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    let runs = sorted.chunk_by(|a, b| a == b);
    runs.map(|run| (run[0], run.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_penalty_pulls_down_whatever_the_sign() {
        let mut logits = [4.0, -4.0, 1.0];
        penalize_repetition(logits.as_mut_slice(), 2.0, &[0, 1, 0]);
        assert_eq!(logits, [2.0, -8.0, 1.0]);
    }

    #[test]
    fn presence_counts_once_and_frequency_each_time_in_the_answer_alone() {
        let options = Options {
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            no_repeat_ngram_size: 0,
            ..Options::default()
        };
        let mut logits = [1.0; 4];
        let past = Past {
            history: &[3, 3, 0, 1, 0],
            prompt: 2,
            ends: &[],
        };
        process(logits.as_mut_slice(), &options, past);
        assert_eq!(logits, [0.0, 0.25, 1.0, 1.0]);
    }

    #[test]
    fn a_bias_comes_before_the_penalty() {
        let options = Options {
            logit_bias: BTreeMap::from([(0, 1.0), (1, -3.0), (9, 1.0)]),
            repetition_penalty: 2.0,
            no_repeat_ngram_size: 0,
            ..Options::default()
        };
        let mut logits = [1.0, 1.0];
        let past = Past {
            history: &[0, 1],
            prompt: 2,
            ends: &[],
        };
        process(logits.as_mut_slice(), &options, past);
        assert_eq!(logits, [1.0, -4.0]);
    }

    #[test]
    fn nothing_ends_an_answer_below_its_least_length() {
        let options = Options {
            min_new_tokens: 2,
            no_repeat_ngram_size: 0,
            ..Options::default()
        };
        for (history, banned) in [(&[1][..], true), (&[1, 0], true), (&[1, 0, 0], false)] {
            let mut logits = [0.0; 4];
            let past = Past {
                history,
                prompt: 1,
                ends: &[2, 3],
            };
            process(logits.as_mut_slice(), &options, past);
            assert_eq!(logits[2] == f32::NEG_INFINITY, banned, "{history:?}");
            assert_eq!((logits[0], logits[2]), (0.0, logits[3]));
        }
    }
}
