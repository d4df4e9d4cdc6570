//! Temperature, `top_k` and `top_p`: from processed logits to the tokens that may be drawn.
//!
//! Where torch computes in f32, a border is decided in f32 here too, so that a token exactly on the
//! border falls on torch's side.

use super::logits::Row;
use super::options::{Candidate, Options};

/// The tokens that the warpers leave, the likeliest first; empty if every logit is minus infinity.
pub(super) fn candidates(logits: &(impl Row + ?Sized), options: &Options) -> Vec<Candidate> {
    let mut kept: Vec<(u32, f32)> = logits
        .pairs()
        .map(|(id, logit)| (id, logit / options.temperature))
        .filter(|(_, logit)| *logit > f32::NEG_INFINITY)
        .collect();
    keep_top_k(&mut kept, options.top_k as usize);
    // The last of equals comes first: torch sorts upwards, stably for few values, and cuts off from
    // the start.
    kept.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(b.0.cmp(&a.0)));
    let weights = weights(&kept);
    let count = top_p_count(&weights, options.top_p);
    let total: f64 = weights[..count].iter().sum();
    kept.iter()
        .zip(&weights[..count])
        .map(|(&(id, _), weight)| Candidate {
            id,
            probability: weight / total,
        })
        .collect()
}

/// Probabilities of descending logits, up to a factor.
fn weights(kept: &[(u32, f32)]) -> Vec<f64> {
    let highest = kept.first().map_or(0.0, |&(_, logit)| f64::from(logit));
    let weight = |&(_, logit): &(u32, f32)| {
        // +inf minus +inf would be NaN; an infinite logit takes everything.
        if logit == f32::INFINITY {
            1.0
        } else {
            (f64::from(logit) - highest).exp()
        }
    };
    kept.iter().map(weight).collect()
}

/// Leaves the `k` highest and whatever equals the lowest of them; 0 leaves all.
fn keep_top_k(candidates: &mut Vec<(u32, f32)>, k: usize) {
    if k == 0 || k >= candidates.len() {
        return;
    }
    let (_, &mut (_, lowest), _) =
        candidates.select_nth_unstable_by(k - 1, |a, b| b.1.total_cmp(&a.1));
    candidates.retain(|(_, logit)| *logit >= lowest);
}

/// The size of the smallest set of descending weights that reaches the share `p`: all but the least
/// likely weights whose sum stays within 1 − p. It is at least 1 unless there are no weights.
fn top_p_count(weights: &[f64], p: f32) -> usize {
    if p >= 1.0 {
        return weights.len();
    }
    let limit = (1.0 - decimal(p)) as f32;
    let total: f64 = weights.iter().sum();
    let mut below = 0.0;
    for (index, weight) in weights.iter().enumerate().rev() {
        below += f64::from((weight / total) as f32);
        if below as f32 > limit {
            return index + 1;
        }
    }
    weights.len().min(1)
}

/// The number that was written: 0.8 as f32 is a little over 0.8, enough to move a border among
/// equals.
fn decimal(p: f32) -> f64 {
    p.to_string().parse().unwrap_or(f64::from(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_k_keeps_ties_with_the_last() {
        let mut candidates = vec![(0, 1.0), (1, 3.0), (2, 2.0), (3, 2.0)];
        keep_top_k(&mut candidates, 2);
        candidates.sort_unstable_by_key(|candidate| candidate.0);
        assert_eq!(candidates, [(1, 3.0), (2, 2.0), (3, 2.0)]);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        let weights = [0.5, 0.25, 0.125, 0.125];
        for (p, count) in [
            (0.0, 1),
            (0.1, 1),
            (0.5, 1),
            (0.51, 2),
            (0.75, 2),
            (0.8, 3),
            (0.99, 4),
            (1.0, 4),
        ] {
            assert_eq!(top_p_count(&weights, p), count, "top_p {p}");
        }
        assert_eq!(top_p_count(&[], 0.5), 0);
    }
}
