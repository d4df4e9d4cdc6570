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
        let AdamWConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
        } = self.config;
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let keep = (1.0 - lr * weight_decay) as f32;
        let rate = (lr / (1.0 - beta1.powi(steps))) as f32;
        let root = (1.0 / (1.0 - beta2.powi(steps)).sqrt()) as f32;
        let (b1, c1, b2, c2) = (
            beta1 as f32,
            (1.0 - beta1) as f32,
            beta2 as f32,
            (1.0 - beta2) as f32,
        );
        let eps = eps as f32;
        for (((value, grad), m), v) in values
            .iter_mut()
            .zip(grads)
            .zip(&mut self.m)
            .zip(&mut self.v)
        {
            *m = b1 * *m + c1 * grad;
            *v = b2 * *v + c2 * grad * grad;
            *value = *value * keep - rate * *m / (v.sqrt() * root + eps);
        }
        Ok(())
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

/// Scales the gradients down to the norm `max`, if they are longer, and returns the norm before.
///
/// As torch's `clip_grad_norm_`: the factor is `max / (norm + 1e-6)`, at most 1. A norm that is not finite is returned
/// and nothing is scaled: the caller must not take that step.
pub fn clip_norm(grads: &mut [f32], max: f64) -> f64 {
    let norm = norm(grads);
    let factor = max / (norm + 1e-6);
    if norm.is_finite() && factor < 1.0 {
        let factor = factor as f32;
        grads.iter_mut().for_each(|grad| *grad *= factor);
    }
    norm
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
