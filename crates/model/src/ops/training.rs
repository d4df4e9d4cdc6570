//! What training needs of a device beside [`Ops`]: gradients, losses and the optimizer's step.

use std::ops::Range;

use super::{Affine, Heads, Norm, Ops};
use crate::activation::Activation;
use crate::dropout::Mask;
use crate::error::Result;
use crate::optim::Coefficients;

/// What attention's backward needs of its forward.
#[derive(Clone, Debug)]
pub(crate) struct Attended<A> {
    /// Rotated queries, rotated keys, values, in the device's order.
    pub(crate) parts: A,
    /// Log of each row's sum of exponentials: (heads, rows).
    pub(crate) log_sums: A,
    /// The output: (rows, heads × dim).
    pub(crate) out: A,
}

/// The input of a frozen product. A device may fuse the norm or the activation into the product.
pub(crate) enum Input<'a, A> {
    /// The matrix itself.
    Plain(&'a A),
    /// Its layer norm.
    Normed(&'a A, &'a Norm<A>),
    /// Its activation.
    Activated(A, Activation),
}

/// A product by a frozen matrix.
pub(crate) struct Product<A> {
    /// (m, n)
    pub(crate) y: A,
    /// The input that was multiplied, (m, k); none of an activation that was fused.
    pub(crate) input: Option<A>,
    /// Of [`Input::Activated`]: what the derivative is made from, (m, k).
    pub(crate) slope: Option<A>,
}

/// A gradient of a product's output that may have one more operation pending, so that a device can
/// fuse it into the backward product.
pub(crate) enum Upstream<'a, A> {
    /// The gradient itself.
    Plain(&'a A),
    /// `sum` plus the gradient of a layer norm of `x`, whose output has the gradient `d_norm`.
    PlusNorm {
        sum: &'a A,
        d_norm: &'a A,
        x: &'a A,
        norm: &'a Norm<A>,
    },
    /// The gradient times the activation's derivative, which is made from `slope`.
    Activated {
        dy: &'a A,
        slope: &'a A,
        kind: Activation,
    },
}

impl<'a, A> Upstream<'a, A> {
    /// The matrix that is the gradient once the pending operation is done.
    pub(crate) fn matrix(&self) -> &'a A {
        match self {
            Self::Plain(dy) | Self::PlusNorm { sum: dy, .. } | Self::Activated { dy, .. } => dy,
        }
    }
}

/// A device's operations of training.
pub(crate) trait Learn: Ops {
    /// A sum of losses, f64.
    type Sum: Send;

    /// Logits that the loss holds at once; more learned rows than fit are taken in parts.
    const LOGITS_AT_ONCE: usize;

    /// Whether gradients are held in a type that is too narrow for them unless the loss is scaled.
    fn scales_loss(&self) -> bool {
        false
    }

    /// A matrix of zeros.
    fn zeros(&self, rows: usize, columns: usize) -> Result<Self::Array>;
    /// Copies `x`'s rows to the rows of `into` with these numbers.
    fn scatter(&self, into: &Self::Array, x: &Self::Array, rows: &[u32]) -> Result<()>;

    /// `a b`: (m, k) (k, n).
    fn product(&self, a: &Self::Array, b: &Self::Array) -> Result<Self::Array>;
    /// [`Ops::frozen_linear`] of any input.
    fn frozen_forward(
        &self,
        input: Input<'_, Self::Array>,
        w: &Affine<Self>,
        plus: Option<&Self::Array>,
    ) -> Result<Product<Self::Array>> {
        let (input, slope) = match input {
            Input::Plain(x) => (x.clone(), None),
            Input::Normed(x, norm) => {
                let (normed, y) = self.normed_linear(x, norm, w, plus)?;
                return Ok(Product {
                    y,
                    input: Some(normed),
                    slope: None,
                });
            }
            Input::Activated(x, kind) => {
                let (activated, slope) = self.activate_keeping(x, kind)?;
                (activated, Some(slope))
            }
        };
        Ok(Product {
            y: self.frozen_linear(&input, w, plus)?,
            input: Some(input),
            slope,
        })
    }
    /// Does what is pending in a gradient, in place.
    fn settle(&self, dy: &Upstream<'_, Self::Array>) -> Result<()> {
        match dy {
            Upstream::Plain(_) => Ok(()),
            Upstream::PlusNorm {
                sum,
                d_norm,
                x,
                norm,
            } => self.layer_norm_backward(sum, d_norm, x, norm),
            Upstream::Activated { dy, slope, kind } => self.activate_backward(dy, slope, *kind),
        }
    }
    /// `dy w`, always by the dequantized matrix: the gradient of the input of
    /// [`Learn::frozen_forward`]. It settles `dy` but for a fused activation, after which `dy` is
    /// used no more.
    fn frozen_backward(
        &self,
        dy: &Upstream<'_, Self::Array>,
        w: &Self::Weight,
    ) -> Result<Self::Array>;
    /// The gradient of [`Ops::lora_a`]'s input: `dx += scale × d a`, masked if there is a mask:
    /// (m, rank) (rank, k).
    fn add_lora_a_backward(
        &self,
        dx: &Self::Array,
        d: &Self::Array,
        a: &Self::Array,
        scale: f32,
        mask: Option<(&Mask, &Self::Layout)>,
    ) -> Result<()>;
    /// `out += scale × aᵀ b`: (m, k) (m, n), to (k, n) at a range of a flat buffer.
    fn add_gradient(
        &self,
        out: (&mut Self::Flat, Range<usize>),
        a: &Self::Array,
        b: &Self::Array,
        scale: f32,
    ) -> Result<()>;

    /// `dx += ∂(layer norm of x) dy`.
    fn layer_norm_backward(
        &self,
        dx: &Self::Array,
        dy: &Self::Array,
        x: &Self::Array,
        norm: &Norm<Self::Array>,
    ) -> Result<()>;

    /// The activation, and what its derivative is made from.
    fn activate_keeping(
        &self,
        x: Self::Array,
        kind: Activation,
    ) -> Result<(Self::Array, Self::Array)>;
    /// `dy *= ∂activation`, from what [`Learn::activate_keeping`] kept.
    fn activate_backward(
        &self,
        dy: &Self::Array,
        slope: &Self::Array,
        kind: Activation,
    ) -> Result<()>;

    /// Causal attention within each span, from the joint product (rows, heads × 3 × dim).
    fn attention(
        &self,
        qkv: Self::Array,
        heads: &Heads<Self::Array>,
        layout: &Self::Layout,
    ) -> Result<Attended<Self::Array>>;
    /// The gradient of the joint product, from that of the output.
    fn attention_backward(
        &self,
        d_out: &Self::Array,
        attended: &Attended<Self::Array>,
        heads: &Heads<Self::Array>,
        layout: &Self::Layout,
    ) -> Result<Self::Array>;

    /// A sum of no losses.
    fn sum(&self) -> Result<Self::Sum>;
    /// Waits for a sum.
    fn read_sum(&self, sum: &Self::Sum) -> Result<f64>;
    /// Adds the rows' cross-entropies to a sum; `logits` become `factor` times their gradient.
    fn cross_entropy(
        &self,
        sum: &mut Self::Sum,
        logits: &Self::Array,
        targets: &[u32],
        factor: f32,
    ) -> Result<()>;

    /// A flat buffer's values.
    fn read_flat(&self, flat: &Self::Flat) -> Result<Vec<f32>>;
    /// Fills a flat buffer with zeros.
    fn clear(&self, flat: &mut Self::Flat) -> Result<()>;
    /// Multiplies a flat buffer.
    fn scale_flat(&self, flat: &mut Self::Flat, factor: f32) -> Result<()>;
    /// A flat buffer's Euclidean norm, in f64; waits for it.
    fn l2_norm(&self, flat: &Self::Flat) -> Result<f64>;
    /// One step of AdamW on `values`, with the first and second `moments`.
    fn adamw(
        &self,
        values: &mut Self::Flat,
        gradients: &Self::Flat,
        moments: (&mut Self::Flat, &mut Self::Flat),
        coefficients: &Coefficients,
    ) -> Result<()>;
}
