//! Log-probabilities of tokens, from a row of logits as the network gives it: before bias,
//! penalties, bans and temperature.

use crate::error::{Error, Result};

/// What is kept of a row of logits to tell log-probabilities: of one token, and of the likeliest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RowScore {
    /// The log of the sum of exponentials of all logits.
    pub(crate) log_sum: f64,
    /// The logit of the token that follows.
    pub(crate) chosen: f32,
    /// The tokens with the highest logits, the highest first; the lower id first of equals.
    pub(crate) best: Vec<(u32, f32)>,
}

/// The log-probability of a token at its place, and of the tokens that were likeliest there.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability; `None` for a prompt's first token, which follows
    /// nothing.
    pub logprob: Option<f32>,
    /// The likeliest tokens, the likeliest first; the lower id first of equals.
    pub best: Vec<Likely>,
}

/// A likely token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likely {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability: the same number as in [`Logprobs::logprob`] if it is
    /// that token.
    pub logprob: f32,
}

impl RowScore {
    /// The score of one row of logits, for a token and the `best` likeliest.
    pub(crate) fn of(logits: &[f32], token: u32, best: usize) -> Self {
        Self {
            log_sum: log_sum(logits),
            chosen: logits
                .get(token as usize)
                .copied()
                .unwrap_or(f32::NEG_INFINITY),
            best: highest(logits, best),
        }
    }

    /// The log-probabilities for the row's token.
    ///
    /// # Errors
    /// The logits are not finite numbers.
    pub(crate) fn logprobs(self, token: u32) -> Result<Logprobs> {
        if !self.log_sum.is_finite() {
            return Err(Error::Input(
                "the logits are not finite: there are no log-probabilities".into(),
            ));
        }
        let logprob = |logit: f32| (f64::from(logit) - self.log_sum) as f32;
        let best = self.best.iter().map(|&(id, logit)| Likely {
            id,
            logprob: logprob(logit),
        });
        Ok(Logprobs {
            id: token,
            logprob: Some(logprob(self.chosen)),
            best: best.collect(),
        })
    }
}

impl Logprobs {
    /// Of a prompt's first token.
    pub(crate) fn first(id: u32) -> Self {
        Self {
            id,
            logprob: None,
            best: Vec::new(),
        }
    }
}

fn log_sum(logits: &[f32]) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let highest = f64::from(highest);
    let sum: f64 = logits
        .iter()
        .map(|&logit| (f64::from(logit) - highest).exp())
        .sum();
    highest + sum.ln()
}

/// The `count` highest logits with their ids.
fn highest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (id, &logit) in (0u32..).zip(logits) {
        if best.len() == count && best.last().is_none_or(|&(_, lowest)| logit <= lowest) {
            continue;
        }
        let place = best.partition_point(|&(_, higher)| higher >= logit);
        best.insert(place, (id, logit));
        best.truncate(count);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_and_the_likeliest_come_first() {
        let logits = [0.5, 2.0, f32::NEG_INFINITY, 2.0, -3.0];
        let found = RowScore::of(&logits, 3, 20).logprobs(3).unwrap();
        let ids: Vec<u32> = found.best.iter().map(|likely| likely.id).collect();
        assert_eq!(ids, [1, 3, 0, 4, 2]);
        let sum: f64 = found.best.iter().map(|l| f64::from(l.logprob).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        assert_eq!(found.logprob, Some(found.best[1].logprob));
        for count in 0..5 {
            let fewer = RowScore::of(&logits, 3, count).logprobs(3).unwrap();
            assert_eq!(fewer.best, found.best[..count]);
            assert_eq!(fewer.logprob, found.logprob);
        }
    }

    #[test]
    fn logits_without_a_finite_sum_have_no_probabilities() {
        for odd in [f32::NAN, f32::INFINITY] {
            assert!(RowScore::of(&[0.0, odd], 0, 1).logprobs(0).is_err());
        }
        assert!(
            RowScore::of(&[f32::NEG_INFINITY], 0, 1)
                .logprobs(0)
                .is_err()
        );
    }
}
