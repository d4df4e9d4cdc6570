//! AdamW over one flat buffer, clipping by the global norm, the loss scale and the learning rate's
//! schedule; all of it bit-exact.

use crate::error::{Error, Result};

/// AdamW's constants (torch's meaning and defaults, but no weight decay).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled decay.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// The factor on a loss whose gradients are held in fp16, so that small ones do not vanish. It is
/// halved when a gradient overflows, and doubled after [`LossScale::PATIENCE`] steps without.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    /// A power of two.
    scale: f32,
    /// Steps since it changed.
    good: u32,
}

impl LossScale {
    /// Steps without an overflow before it is doubled.
    pub const PATIENCE: u32 = 2000;
    /// The scale was chosen for a mean loss; our gradients are sums over about this many targets.
    const TARGETS: f32 = 4096.0;

    /// The scale of a step's mean loss.
    #[must_use]
    pub fn scale(self) -> f32 {
        self.scale
    }

    /// The factor on the sum of the losses.
    #[must_use]
    pub fn factor(self) -> f32 {
        self.scale / Self::TARGETS
    }

    /// The scale after a step that was taken.
    #[must_use]
    pub fn after_step(self) -> Self {
        if self.good + 1 < Self::PATIENCE {
            let good = self.good + 1;
            return Self { good, ..self };
        }
        let scale = 2.0 * self.scale;
        Self { scale, good: 0 }
    }

    /// The scale after a gradient that was not finite; `None` below 1, which no loss needs.
    #[must_use]
    pub fn after_overflow(self) -> Option<Self> {
        let scale = self.scale / 2.0;
        (scale >= 1.0).then_some(Self { scale, good: 0 })
    }
}

impl Default for LossScale {
    fn default() -> Self {
        Self {
            scale: 65_536.0,
            good: 0,
        }
    }
}

/// The state of AdamW ([Loshchilov and Hutter](https://arxiv.org/abs/1711.05101)) with bias
/// correction, in f32. The device takes its steps.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    m: Vec<f32>,
    v: Vec<f32>,
    loss_scale: Option<LossScale>,
}

const MAGIC: &[u8; 8] = b"togiadw1";
/// The magic of a state that ends with a loss scale.
const MAGIC_WITH_SCALE: &[u8; 8] = b"togiadw2";

impl AdamW {
    /// A fresh state for `len` values.
    #[must_use]
    pub fn new(len: usize, config: AdamWConfig) -> Self {
        Self {
            config,
            steps: 0,
            m: vec![0.0; len],
            v: vec![0.0; len],
            loss_scale: None,
        }
    }

    /// Steps taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The loss scale of a training in fp16.
    #[must_use]
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.loss_scale
    }

    /// The constants, the steps taken and both moments.
    pub(crate) fn parts(&self) -> (AdamWConfig, u64, [&[f32]; 2]) {
        (self.config, self.steps, [&self.m, &self.v])
    }

    /// The state of these parts: see [`AdamW::parts`] and [`AdamW::loss_scale`].
    pub(crate) fn from_parts(
        config: AdamWConfig,
        steps: u64,
        [m, v]: [Vec<f32>; 2],
        loss_scale: Option<LossScale>,
    ) -> Self {
        Self {
            config,
            steps,
            m,
            v,
            loss_scale,
        }
    }

    /// The state (steps, both moments and the loss scale) as bytes; the constants belong to the
    /// recipe.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32 + 8 * self.m.len());
        bytes.extend_from_slice(match self.loss_scale {
            Some(_) => MAGIC_WITH_SCALE,
            None => MAGIC,
        });
        bytes.extend_from_slice(&self.steps.to_le_bytes());
        bytes.extend_from_slice(&(self.m.len() as u64).to_le_bytes());
        for value in self.m.iter().chain(&self.v) {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        if let Some(LossScale { scale, good }) = self.loss_scale {
            bytes.extend_from_slice(&scale.to_le_bytes());
            bytes.extend_from_slice(&good.to_le_bytes());
        }
        bytes
    }

    /// The state that [`AdamW::to_bytes`] wrote, bit for bit.
    ///
    /// # Errors
    /// The bytes are not such a state.
    pub fn from_bytes(bytes: &[u8], config: AdamWConfig) -> Result<Self> {
        let bad = |reason: &str| Error::format("optimizer state", reason);
        let (rest, loss_scale) = match bytes.strip_prefix(MAGIC) {
            Some(rest) => (rest, None),
            None => {
                let rest = bytes.strip_prefix(MAGIC_WITH_SCALE);
                let rest = rest.ok_or_else(|| bad("wrong magic"))?;
                let (rest, &[s0, s1, s2, s3, g0, g1, g2, g3]) =
                    rest.split_last_chunk().ok_or_else(|| bad("too short"))?;
                let scale = f32::from_le_bytes([s0, s1, s2, s3]);
                if !(1.0..f32::INFINITY).contains(&scale) {
                    return Err(bad("a loss scale below 1"));
                }
                let good = u32::from_le_bytes([g0, g1, g2, g3]);
                (rest, Some(LossScale { scale, good }))
            }
        };
        let (words, rest) = rest.split_at_checked(16).ok_or_else(|| bad("too short"))?;
        let words = words.as_chunks::<8>().0;
        let (steps, len) = (u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1]));
        let len = usize::try_from(len).map_err(|_| bad("too long"))?;
        if len.checked_mul(8) != Some(rest.len()) {
            return Err(bad("wrong length"));
        }
        let read = |part: &[u8]| {
            part.as_chunks::<4>()
                .0
                .iter()
                .map(|&b| f32::from_le_bytes(b))
                .collect()
        };
        let (m, v) = rest.split_at(4 * len);
        Ok(Self {
            config,
            steps,
            m: read(m),
            v: read(v),
            loss_scale,
        })
    }
}

/// The factors of one step: `p ← p (1 − lr λ) − lr m̂ / (√v̂ + ε)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coefficients {
    /// 1 − lr λ
    pub(crate) keep: f32,
    /// lr / (1 − β₁ᵗ)
    pub(crate) rate: f32,
    /// 1 / √(1 − β₂ᵗ)
    pub(crate) root: f32,
    pub(crate) eps: f32,
    /// β₁ and 1 − β₁
    pub(crate) first: [f32; 2],
    /// β₂ and 1 − β₂
    pub(crate) second: [f32; 2],
}

impl Coefficients {
    /// The factors of the step with this number, counted from 1.
    pub(crate) fn new(config: AdamWConfig, step: u64, lr: f64) -> Self {
        let AdamWConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
        } = config;
        let step = i32::try_from(step).unwrap_or(i32::MAX);
        Self {
            keep: (1.0 - lr * weight_decay) as f32,
            rate: (lr / (1.0 - beta1.powi(step))) as f32,
            root: (1.0 / (1.0 - beta2.powi(step)).sqrt()) as f32,
            eps: eps as f32,
            first: [beta1 as f32, (1.0 - beta1) as f32],
            second: [beta2 as f32, (1.0 - beta2) as f32],
        }
    }

    /// Takes the step.
    pub(crate) fn apply(
        &self,
        values: &mut [f32],
        grads: &[f32],
        (m, v): (&mut [f32], &mut [f32]),
    ) {
        let ([b1, c1], [b2, c2]) = (self.first, self.second);
        for (((value, grad), m), v) in values.iter_mut().zip(grads).zip(m).zip(v) {
            *m = b1 * *m + c1 * grad;
            *v = b2 * *v + c2 * grad * grad;
            *value = *value * self.keep - self.rate * *m / (v.sqrt() * self.root + self.eps);
        }
    }
}

/// The factor that scales gradients of this norm down to the norm `max`; `None` if they are not
/// longer, or not finite.
///
/// It is that of torch's `clip_grad_norm_`: `max / (norm + 1e-6)`, at most 1.
pub(crate) fn clip_factor(norm: f64, max: f64) -> Option<f32> {
    let factor = max / (norm + 1e-6);
    (norm.is_finite() && factor < 1.0).then_some(factor as f32)
}

/// The length of a vector, summed in order in f64.
pub(crate) fn l2_norm(grads: &[f32]) -> f64 {
    grads
        .iter()
        .map(|&grad| f64::from(grad) * f64::from(grad))
        .sum::<f64>()
        .sqrt()
}

/// Linear warm-up from 0, then linear decay to 0 (`get_linear_schedule_with_warmup` of
/// transformers).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The rate at the end of warm-up.
    pub base: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Steps in all.
    pub total: u64,
}

impl Schedule {
    /// The rate of the step with this number, counted from 0.
    #[must_use]
    pub fn lr(&self, step: u64) -> f64 {
        let share = if step < self.warmup {
            step as f64 / self.warmup.max(1) as f64
        } else {
            self.total.saturating_sub(step) as f64
                / self.total.saturating_sub(self.warmup).max(1) as f64
        };
        self.base * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adamw_takes_the_steps_that_its_formula_gives() {
        let config = AdamWConfig {
            weight_decay: 0.1,
            ..AdamWConfig::default()
        };
        let (mut value, mut m, mut v) = (0.5_f64, 0.0_f64, 0.0_f64);
        let (mut values, mut first, mut second) = ([0.5], [0.0], [0.0]);
        for (step, grad) in (1..).zip([0.3, -0.2, 0.9, 0.0]) {
            let moments = (first.as_mut_slice(), second.as_mut_slice());
            Coefficients::new(config, step, 0.01).apply(&mut values, &[grad as f32], moments);
            m = 0.9 * m + 0.1 * grad;
            v = 0.999 * v + 0.001 * grad * grad;
            let m_hat = m / (1.0 - 0.9_f64.powi(step as i32));
            let v_hat = v / (1.0 - 0.999_f64.powi(step as i32));
            value = value * (1.0 - 0.01 * 0.1) - 0.01 * m_hat / (v_hat.sqrt() + 1e-8);
            assert!((f64::from(values[0]) - value).abs() < 1e-6);
        }
    }

    #[test]
    fn clipping_scales_only_what_is_too_long() {
        let norm = l2_norm(&[3.0, 4.0]);
        assert!((norm - 5.0).abs() < 1e-9);
        assert_eq!(clip_factor(norm, 10.0), None);
        assert!((clip_factor(norm, 1.0).unwrap() - 0.2).abs() < 1e-6);
        assert_eq!(clip_factor(l2_norm(&[f32::NAN, 1.0]), 1.0), None);
    }

    #[test]
    fn a_loss_scale_halves_doubles_and_ends_at_one() {
        let start = LossScale::default();
        assert_eq!(start.scale(), 65_536.0);
        assert_eq!(start.after_overflow().unwrap().scale(), 32_768.0);
        let mut scale = start;
        for _ in 1..LossScale::PATIENCE {
            scale = scale.after_step();
            assert_eq!(scale.scale(), 65_536.0);
        }
        // An overflow counts from the beginning.
        let scale = scale.after_overflow().unwrap().after_step();
        assert_eq!(scale.scale(), 32_768.0);
        let scale = (1..LossScale::PATIENCE).fold(scale, |scale, _| scale.after_step());
        assert_eq!(scale.scale(), 65_536.0);
        let halved = std::iter::successors(Some(start), |scale| scale.after_overflow());
        assert_eq!(halved.last().unwrap().scale(), 1.0);
    }

    #[test]
    fn a_loss_scale_is_part_of_the_state_and_states_without_one_stay_readable() {
        let mut state = AdamW::new(3, AdamWConfig::default());
        let before = state.to_bytes();
        assert_eq!(before[..8], *MAGIC);
        let read = |bytes: &[u8]| AdamW::from_bytes(bytes, AdamWConfig::default());
        assert_eq!(read(&before).unwrap(), state);
        state.loss_scale = LossScale::default().after_step().after_overflow();
        state.loss_scale = state.loss_scale.map(LossScale::after_step);
        let bytes = state.to_bytes();
        assert_eq!(read(&bytes).unwrap(), state);
        assert!(read(&bytes[..bytes.len() - 1]).is_err());
        let mut below = bytes;
        let at = below.len() - 8;
        below[at..at + 4].copy_from_slice(&0.5_f32.to_le_bytes());
        assert!(read(&below).is_err());
    }
}
