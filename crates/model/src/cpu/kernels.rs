//! Loops over one row, compiled for AVX2 where the machine has it.
//!
//! Sums run in a fixed count of lanes that are added in a fixed order, so that the bits repeat on
//! the same kind of machine.

mod functions;
pub(super) mod tiles;

use pulp::{Simd, WithSimd};

use crate::activation::Activation;
pub(super) use crate::simd::run;
pub(super) use functions::{dot_in, exp, highest, sum};

/// [`run`] for a closure.
#[inline(always)]
pub(super) fn simd<R>(f: impl FnOnce() -> R) -> R {
    run(f)
}

/// `y += scale x`, to be used inside of [`run`].
#[inline(always)]
pub(super) fn axpy(y: &mut [f32], x: &[f32], scale: f32) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += scale * x;
    }
}

/// `y += x`
pub(super) fn add(y: &mut [f32], x: &[f32]) {
    simd(
        #[inline(always)]
        || {
            for (y, x) in y.iter_mut().zip(x) {
                *y += x;
            }
        },
    );
}

/// `y += scale x`
pub(super) fn add_scaled(y: &mut [f32], x: &[f32], scale: f32) {
    simd(
        #[inline(always)]
        || axpy(y, x, scale),
    );
}

/// `y += scale x b`, with `b` of (x's length, y's length).
pub(super) fn add_expanded(y: &mut [f32], x: &[f32], b: &[f32], scale: f32) {
    /// Values of `y` that stay in a core's first cache while all of `x` is added to them.
    const AT_ONCE: usize = 1024;
    let outputs = y.len();
    simd(
        #[inline(always)]
        || {
            for (part, y) in y.chunks_mut(AT_ONCE).enumerate() {
                for (x, b) in x.iter().zip(b.chunks_exact(outputs)) {
                    axpy(y, &b[part * AT_ONCE..][..y.len()], scale * x);
                }
            }
        },
    );
}

/// `y *= x`
pub(super) fn multiply(y: &mut [f32], x: &[f32]) {
    simd(
        #[inline(always)]
        || {
            for (y, x) in y.iter_mut().zip(x) {
                *y *= x;
            }
        },
    );
}

/// `out[j rows + i] = x_i · w_j` for as many rows of `w` as `out` has room for.
pub(super) struct Dots<'a> {
    pub(super) out: &'a mut [f32],
    pub(super) x: &'a [f32],
    pub(super) w: &'a [f32],
    pub(super) inputs: usize,
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.x.len() / self.inputs;
        for (out, w) in self
            .out
            .chunks_exact_mut(rows)
            .zip(self.w.chunks_exact(self.inputs))
        {
            for (out, x) in out.iter_mut().zip(self.x.chunks_exact(self.inputs)) {
                *out = dot_in(simd, x, w);
            }
        }
    }
}

/// Mean and reciprocal standard deviation.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = sum(x, |x| x) / count;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / count;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// `y = (x − mean) / √(variance + eps) ∘ weight + bias`
pub(super) fn layer_norm(y: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    simd(
        #[inline(always)]
        || {
            let (mean, scale) = moments(x, eps);
            for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = (x - mean) * scale * weight + bias;
            }
        },
    );
}

/// `dx += scale (g − mean(g) − x̂ mean(g x̂))` with `g = dy ∘ weight` and x̂ the normed row before
/// gain and offset.
pub(super) fn layer_norm_backward(dx: &mut [f32], dy: &[f32], x: &[f32], weight: &[f32], eps: f32) {
    simd(
        #[inline(always)]
        || {
            let (mean, scale) = moments(x, eps);
            let count = x.len() as f32;
            let gained = functions::dot(dy, weight);
            let along = functions::triple(dy, weight, x);
            let mean_g = gained / count;
            // mean(g x̂) = scale (Σ g x − mean Σ g) / count
            let mean_gx = scale * (along - mean * gained) / count;
            for (((dx, dy), x), weight) in dx.iter_mut().zip(dy).zip(x).zip(weight) {
                *dx += scale * (dy * weight - mean_g - (x - mean) * scale * mean_gx);
            }
        },
    );
}

/// The activation in place.
pub(super) fn activate(x: &mut [f32], kind: Activation) {
    #[inline(always)]
    fn all(x: &mut [f32], f: impl Fn(f32) -> (f32, f32)) {
        for x in x {
            *x = f(*x).0;
        }
    }
    simd(
        #[inline(always)]
        || match kind {
            Activation::Gelu => all(x, functions::gelu),
            Activation::GeluTanh => all(x, functions::gelu_tanh),
            Activation::Relu => all(x, functions::relu),
            Activation::Silu => all(x, functions::silu),
        },
    );
}

/// The activation in place, its derivative to `slope`.
pub(super) fn activate_with_slope(x: &mut [f32], slope: &mut [f32], kind: Activation) {
    #[inline(always)]
    fn both(x: &mut [f32], slope: &mut [f32], f: impl Fn(f32) -> (f32, f32)) {
        for (x, slope) in x.iter_mut().zip(slope) {
            (*x, *slope) = f(*x);
        }
    }
    simd(
        #[inline(always)]
        || match kind {
            Activation::Gelu => both(x, slope, functions::gelu),
            Activation::GeluTanh => both(x, slope, functions::gelu_tanh),
            Activation::Relu => both(x, slope, functions::relu),
            Activation::Silu => both(x, slope, functions::silu),
        },
    );
}

/// The negative log likelihood of `target`; the logits become softmax minus one-hot.
pub(super) fn cross_entropy(logits: &mut [f32], target: usize, factor: f32) -> f32 {
    simd(
        #[inline(always)]
        || {
            let highest = highest(logits);
            let picked = logits[target] - highest;
            logits
                .iter_mut()
                .for_each(|logit| *logit = exp(*logit - highest));
            let total = sum(logits, |x| x);
            let scale = factor / total;
            for logit in logits.iter_mut() {
                *logit *= scale;
            }
            logits[target] -= factor;
            total.ln() - picked
        },
    )
}
