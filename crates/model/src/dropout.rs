//! Dropout whose mask is a pure function of a value's position, so that packing and micro-batches
//! do not change it.

use togi_common::random::nth;

use crate::random;
use crate::target::Target;

/// Dropout on the inputs of LoRA's A in one optimizer step.
///
/// A counter-based generator over (seed, step, layer, module, slot, token, channel) gives the mask.
/// SplitMix64's finaliser folds the first six into the key of a row. The key's stream gives 64 bits
/// at index `channel / 2`: the low half for the even channel, the high half for the odd one. A
/// value stays if its half is at least `round(p 2^32)`, and is scaled by 1 / (1 − p).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of zero; from 0 to below 1.
    pub p: f64,
    /// The run's seed.
    pub seed: u64,
    /// The optimizer step.
    pub step: u64,
}

impl Dropout {
    /// The mask of one module's input.
    pub(crate) fn mask(&self, layer: usize, target: Target) -> Mask {
        let key = [self.step, layer as u64, target.index() as u64]
            .into_iter()
            .fold(self.seed, random::derive);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let threshold = (self.p * 4_294_967_296.0).round() as u32;
        Mask {
            key,
            threshold,
            scale: (1.0 / (1.0 - self.p)) as f32,
        }
    }
}

/// The position of a row: the record's slot in its window, and the token's index in the record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MaskRow {
    pub(crate) slot: u32,
    pub(crate) token: u32,
}

/// The mask of one module's input in one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask {
    pub(crate) key: u64,
    /// The smallest 32 bits of a value that stays.
    pub(crate) threshold: u32,
    /// The factor on values that stay.
    pub(crate) scale: f32,
}

impl Mask {
    /// Masks and scales a row.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn apply(&self, row: MaskRow, values: &mut [f32]) {
        let MaskRow { slot, token } = row;
        let key = random::derive(self.key, u64::from(slot) << 32 | u64::from(token));
        let factor = |bits: u32| {
            if bits >= self.threshold {
                self.scale
            } else {
                0.0
            }
        };
        for (pair, values) in values.chunks_mut(2).enumerate() {
            let bits = nth(key, pair as u64);
            values[0] *= factor(bits as u32);
            if let Some(odd) = values.get_mut(1) {
                *odd *= factor((bits >> 32) as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNELS: usize = 1001;

    /// A row of ones at this position, masked.
    fn row(dropout: &Dropout, layer: usize, target: Target, place: (u32, u32)) -> Vec<f32> {
        let (slot, token) = place;
        let mut values = vec![1.0; CHANNELS];
        dropout
            .mask(layer, target)
            .apply(MaskRow { slot, token }, &mut values);
        values
    }

    fn dropout(p: f64) -> Dropout {
        Dropout {
            p,
            seed: 11,
            step: 5,
        }
    }

    #[test]
    fn the_share_that_is_asked_for_is_dropped_and_the_rest_is_scaled() {
        for p in [0.0, 0.05, 0.3, 0.9] {
            let dropout = dropout(p);
            let rows = (0..200).flat_map(|token| row(&dropout, 1, Target::Dense, (3, token)));
            let values: Vec<f32> = rows.collect();
            let kept = (1.0 / (1.0 - p)) as f32;
            assert!(values.iter().all(|&value| value == 0.0 || value == kept));
            let count = values.len() as f64;
            let dropped = values.iter().filter(|&&value| value == 0.0).count() as f64;
            // Four standard deviations of the share in `count` independent draws.
            let error = 4.0 * (p * (1.0 - p) / count).sqrt();
            assert!(
                (dropped / count - p).abs() <= error,
                "{dropped} of {count} at p {p}"
            );
        }
    }

    #[test]
    fn a_mask_repeats_for_its_key_and_differs_in_each_part_of_it() {
        let half = dropout(0.5);
        let reference = row(&half, 1, Target::Dense, (3, 7));
        assert_eq!(row(&half, 1, Target::Dense, (3, 7)), reference);
        let others = [
            (
                "seed",
                row(&Dropout { seed: 12, ..half }, 1, Target::Dense, (3, 7)),
            ),
            (
                "step",
                row(&Dropout { step: 6, ..half }, 1, Target::Dense, (3, 7)),
            ),
            ("layer", row(&half, 2, Target::Dense, (3, 7))),
            ("module", row(&half, 1, Target::QueryKeyValue, (3, 7))),
            ("record", row(&half, 1, Target::Dense, (4, 7))),
            ("token", row(&half, 1, Target::Dense, (3, 8))),
            (
                "record and token, swapped",
                row(&half, 1, Target::Dense, (7, 3)),
            ),
        ];
        for (part, other) in others {
            assert_unrelated(&other, &reference, part);
        }
    }

    #[test]
    fn channels_are_dropped_independently() {
        let values = row(&dropout(0.5), 1, Target::Dense, (3, 7));
        for distance in [1, 2, 3, 64] {
            let end = CHANNELS - distance;
            assert_unrelated(&values[..end], &values[distance..], &format!("{distance}"));
        }
    }

    /// Two masks of p = 1/2 agree in about half their channels: neither equal nor opposite.
    fn assert_unrelated(one: &[f32], other: &[f32], what: &str) {
        let pairs = one.iter().zip(other);
        let share = pairs.filter(|(a, b)| a == b).count() as f64 / one.len() as f64;
        assert!(
            (share - 0.5).abs() < 0.07,
            "{what}: {share} of the channels agree"
        );
    }
}
