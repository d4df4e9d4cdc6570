//! AdamW over one flat buffer, clipping by the global norm, and the learning rate's schedule; all of it bit-exact.

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

/// AdamW ([Loshchilov and Hutter](https://arxiv.org/abs/1711.05101)) with bias correction; state in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    m: Vec<f32>,
    v: Vec<f32>,
}

const MAGIC: &[u8; 8] = b"togiadw1";

impl AdamW {
    /// A fresh state for `len` values.
    #[must_use]
    pub fn new(len: usize, config: AdamWConfig) -> Self {
        Self {
            config,
            steps: 0,
            m: vec![0.0; len],
            v: vec![0.0; len],
        }
    }

    /// Steps taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes one step: `p ← p (1 − lr λ) − lr m̂ / (√v̂ + ε)`.
    ///
    /// # Errors
    /// `values` or `grads` have another length than the state.
    pub fn step(&mut self, values: &mut [f32], grads: &[f32], lr: f64) -> Result<()> {
        if values.len() != self.m.len() || grads.len() != self.m.len() {
            let reason = format!(
                "{} values and {} gradients for {}",
                values.len(),
                grads.len(),
                self.m.len()
            );
            return Err(Error::format("optimizer step", reason));
        }
        self.steps += 1;
        let coefficients = Coefficients::new(self.config, self.steps, lr);
        coefficients.apply(values, grads, (&mut self.m, &mut self.v));
        Ok(())
    }

    /// The constants, the steps taken and both moments.
    pub(crate) fn parts(&self) -> (AdamWConfig, u64, [&[f32]; 2]) {
        (self.config, self.steps, [&self.m, &self.v])
    }

    /// Puts together what [`AdamW::parts`] gave.
    pub(crate) fn from_parts(config: AdamWConfig, steps: u64, [m, v]: [Vec<f32>; 2]) -> Self {
        Self {
            config,
            steps,
            m,
            v,
        }
    }

    /// The state (steps and both moments) as bytes; the constants belong to the recipe.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24 + 8 * self.m.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.steps.to_le_bytes());
        bytes.extend_from_slice(&(self.m.len() as u64).to_le_bytes());
        for value in self.m.iter().chain(&self.v) {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// The state that [`AdamW::to_bytes`] wrote, bit for bit.
    ///
    /// # Errors
    /// The bytes are no such state.
    pub fn from_bytes(bytes: &[u8], config: AdamWConfig) -> Result<Self> {
        let bad = |reason: &str| Error::format("optimizer state", reason);
        let rest = bytes
            .strip_prefix(MAGIC.as_slice())
            .ok_or_else(|| bad("wrong magic"))?;
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
        })
    }
}

/// What AdamW's formula needs in one step.
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
    /// Those of the step with this number, counted from 1.
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

/// Scales the gradients down to the norm `max`, if they are longer, and returns the norm before.
///
/// As torch's `clip_grad_norm_`: the factor is `max / (norm + 1e-6)`, at most 1. A norm that is not finite is returned
/// and nothing is scaled: the caller must not take that step.
pub fn clip_norm(grads: &mut [f32], max: f64) -> f64 {
    let norm = norm(grads);
    if let Some(factor) = clip_factor(norm, max) {
        grads.iter_mut().for_each(|grad| *grad *= factor);
    }
    norm
}

/// What scales gradients of this norm down to the norm `max`; none if they are not longer, or not finite.
pub(crate) fn clip_factor(norm: f64, max: f64) -> Option<f32> {
    let factor = max / (norm + 1e-6);
    (norm.is_finite() && factor < 1.0).then_some(factor as f32)
}

/// The Euclidean norm, summed in order in f64.
#[must_use]
pub fn norm(grads: &[f32]) -> f64 {
    grads
        .iter()
        .map(|&grad| f64::from(grad) * f64::from(grad))
        .sum::<f64>()
        .sqrt()
}

/// Linear warm-up from 0, then linear decay to 0 (`get_linear_schedule_with_warmup` of transformers).
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
