//! Dropout whose mask is a pure function of where a value stands, so that packing and micro-batches do not change it.

use crate::lora::Target;
use crate::random;

/// Dropout on the inputs of LoRA's A in one optimizer step.
///
/// The mask of a value is decided by a counter-based generator over (seed, step, layer, module, slot, token, channel):
/// SplitMix64's finaliser folds the first six into the key of a row; the key's stream, at index `channel / 2`, gives 64
/// bits, whose low half decides the even channel and whose high half the odd one: it is kept where the half is at least
/// `round(p 2^32)`. Kept values are scaled by 1 / (1 − p).
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
    pub(crate) fn mask<'a>(&self, layer: usize, target: Target, rows: &'a [Place]) -> Mask<'a> {
        let key = [self.step, layer as u64, target.index() as u64]
            .into_iter()
            .fold(self.seed, random::derive);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let threshold = (self.p * 4_294_967_296.0).round() as u32;
        Mask {
            key,
            threshold,
            scale: (1.0 / (1.0 - self.p)) as f32,
            rows,
        }
    }
}

/// Where a row of a batch stands: the record's slot in its window and the token's place in the record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) slot: u32,
    pub(crate) token: u32,
}

/// The mask of one module's input in one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask<'a> {
    key: u64,
    threshold: u32,
    scale: f32,
    rows: &'a [Place],
}

impl Mask<'_> {
    /// Masks and scales one row in place.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn apply(&self, row: usize, values: &mut [f32]) {
        let Place { slot, token } = self.rows[row];
        let key = random::derive(self.key, u64::from(slot) << 32 | u64::from(token));
        let factor = |bits: u32| {
            if bits >= self.threshold {
                self.scale
            } else {
                0.0
            }
        };
        for (pair, values) in values.chunks_mut(2).enumerate() {
            let bits = random::at(key, pair as u64);
            values[0] *= factor(bits as u32);
            if let Some(odd) = values.get_mut(1) {
                *odd *= factor((bits >> 32) as u32);
            }
        }
    }
}
