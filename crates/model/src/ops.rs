//! The small set of operations that the network is written in: each device implements this trait once.

use std::ops::Range;

use crate::base::held::Held;
use crate::config::Activation;
use crate::dropout::{Mask, Place};
use crate::error::Result;
use crate::optim::Coefficients;

/// Rows of one sequence in a pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Span {
    /// The sequence's first row.
    pub(crate) start: usize,
    /// Rows.
    pub(crate) len: usize,
    /// Tokens of the sequence that are in its cache from earlier passes.
    pub(crate) past: usize,
}

/// A matrix's place in a flat buffer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slot {
    pub(crate) range: Range<usize>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// The shape of attention and its rotary tables.
#[derive(Clone, Debug)]
pub(crate) struct Heads<A> {
    pub(crate) count: usize,
    pub(crate) dim: usize,
    /// Leading dimensions of a head that are turned; even.
    pub(crate) turned: usize,
    /// cos and sin of position × frequency, (positions, turned / 2) each.
    pub(crate) cos: A,
    pub(crate) sin: A,
}

/// A layer norm's gain and offset, (1, width) each.
#[derive(Clone, Debug)]
pub(crate) struct Norm<A> {
    pub(crate) weight: A,
    pub(crate) bias: A,
    pub(crate) eps: f32,
}

/// What attention's backward needs of its forward.
#[derive(Clone, Debug)]
pub(crate) struct Attended<A> {
    /// Turned queries, turned keys, values, in the device's order.
    pub(crate) parts: A,
    /// Log of each row's sum of exponentials: (heads, rows).
    pub(crate) log_sums: A,
    /// The output: (rows, heads × dim).
    pub(crate) out: A,
}

/// A device's operations on matrices of f32, (rows, columns) row by row.
///
/// Every reduction has an order that depends on shapes alone, so that a pass repeats bit for bit. An operation that
/// changes a matrix in place takes it by shared reference, because device memory is shared; the network hands over only
/// matrices that it has just made and not shared.
pub(crate) trait Ops: Send + Sync {
    /// A matrix on the device; clones share it.
    type Array: Clone + Send + Sync;
    /// A frozen matrix on the device, in the base's representation.
    type Weight: Send + Sync;
    /// Keys and values of one sequence, all layers.
    type Cache: Send;
    /// What the operations need to know of a pass's rows.
    type Layout: Send;
    /// A buffer of f32: an adapter's values, their gradients, or a moment of them.
    type Flat: Send;
    /// A sum of losses, f64.
    type Sum: Send;

    /// Logits that the loss holds at once; more learned rows than fit are taken in parts.
    const LOGITS_AT_ONCE: usize;

    /// Whether gradients are held in a type that is too narrow for them unless the loss is scaled.
    fn scales_loss(&self) -> bool {
        false
    }

    /// Copies to the device.
    fn upload(&self, values: &[f32], rows: usize, columns: usize) -> Result<Self::Array>;
    /// A base's tensor in full on the device, shared where it already is there; a vector becomes one row.
    fn adopt(&self, tensor: &Held) -> Result<Self::Array>;
    /// A base's linear weight in its form on the device, shared where it already is there.
    fn freeze(&self, weight: &Held) -> Result<Self::Weight>;
    /// After the last tensor of a base: waits for all of them.
    ///
    /// # Errors
    /// One has values that are not finite or do not fit, as far as adopting and freezing did not say it.
    fn loaded(&self) -> Result<()> {
        Ok(())
    }
    /// What a pass's rows are: its sequences, which cover the rows in order, and where dropout finds each row, if it does.
    fn layout(&self, spans: &[Span], places: &[Place]) -> Result<Self::Layout>;
    /// Copies from the device.
    fn download(&self, x: &Self::Array) -> Result<Vec<f32>>;
    /// An empty cache.
    fn cache(&self, layers: usize, heads: usize) -> Self::Cache;

    /// The rows of `table` with these numbers.
    fn gather(&self, table: &Self::Array, rows: &[u32]) -> Result<Self::Array>;
    /// A matrix of zeros.
    fn zeros(&self, rows: usize, columns: usize) -> Result<Self::Array>;
    /// Copies `x`'s rows to the rows of `into` with these numbers.
    fn scatter(&self, into: &Self::Array, x: &Self::Array, rows: &[u32]) -> Result<()>;
    /// A copy of a range of rows.
    fn rows(&self, x: &Self::Array, range: Range<usize>) -> Result<Self::Array>;

    /// `a b`: (m, k) (k, n).
    fn product(&self, a: &Self::Array, b: &Self::Array) -> Result<Self::Array>;
    /// `x wᵀ + bias`: (m, k) (n, k), bias (1, n).
    fn linear(
        &self,
        x: &Self::Array,
        w: &Self::Array,
        bias: Option<&Self::Array>,
    ) -> Result<Self::Array>;
    /// [`Ops::linear`] by a frozen matrix, which is dequantized just before, or multiplied as its representation says; plus
    /// another matrix if there is one, (m, n).
    fn frozen_linear(
        &self,
        x: &Self::Array,
        w: &Self::Weight,
        bias: Option<&Self::Array>,
        plus: Option<&Self::Array>,
    ) -> Result<Self::Array>;
    /// [`Ops::product`] by a frozen matrix, always dequantized: the gradient of [`Ops::frozen_linear`]'s input.
    fn frozen_product(&self, dy: &Self::Array, w: &Self::Weight) -> Result<Self::Array>;
    /// [`Ops::frozen_linear`] of the activation of `x`, and what its derivative is made from.
    fn activated_linear(
        &self,
        x: Self::Array,
        kind: Activation,
        (w, bias): (&Self::Weight, Option<&Self::Array>),
        plus: Option<&Self::Array>,
    ) -> Result<(Self::Array, Self::Array)> {
        let (activated, kept) = self.activate_keeping(x, kind)?;
        Ok((self.frozen_linear(&activated, w, bias, plus)?, kept))
    }
    /// The norm of each row, and [`Ops::frozen_linear`] of it.
    fn normed_linear(
        &self,
        x: &Self::Array,
        norm: &Norm<Self::Array>,
        (w, bias): (&Self::Weight, Option<&Self::Array>),
    ) -> Result<(Self::Array, Self::Array)> {
        let normed = self.layer_norm(x, norm)?;
        let y = self.frozen_linear(&normed, w, bias, None)?;
        Ok((normed, y))
    }
    /// [`Ops::layer_norm_backward`], and [`Ops::frozen_product`] of what `dx` became.
    fn norm_backward_product(
        &self,
        dx: &Self::Array,
        dy: &Self::Array,
        (x, norm): (&Self::Array, &Norm<Self::Array>),
        w: &Self::Weight,
    ) -> Result<Self::Array> {
        self.layer_norm_backward(dx, dy, x, norm)?;
        self.frozen_product(dx, w)
    }
    /// [`Ops::frozen_product`] of `dy`, which may change, times the activation's derivative.
    fn sloped_product(
        &self,
        dy: &Self::Array,
        kept: &Self::Array,
        kind: Activation,
        w: &Self::Weight,
    ) -> Result<Self::Array> {
        self.activate_backward(dy, kept, kind)?;
        self.frozen_product(dy, w)
    }
    /// The masked input x̃, which is `x` itself without a mask, and `x̃ aᵀ`: (m, k) (n, k).
    fn shrink(
        &self,
        x: &Self::Array,
        a: &Self::Array,
        mask: Option<(&Mask, &Self::Layout)>,
    ) -> Result<(Self::Array, Self::Array)>;
    /// `y[first..] += scale × x wᵀ`, on as many rows of `y` as `x` has.
    fn add_linear(
        &self,
        y: &Self::Array,
        first: usize,
        x: &Self::Array,
        w: &Self::Array,
        scale: f32,
    ) -> Result<()>;
    /// `y += scale × a b`, masked if there is a mask.
    fn add_product(
        &self,
        y: &Self::Array,
        a: &Self::Array,
        b: &Self::Array,
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

    /// The norm of each row.
    fn layer_norm(&self, x: &Self::Array, norm: &Norm<Self::Array>) -> Result<Self::Array>;
    /// `dx += ∂(norm of x) dy`.
    fn layer_norm_backward(
        &self,
        dx: &Self::Array,
        dy: &Self::Array,
        x: &Self::Array,
        norm: &Norm<Self::Array>,
    ) -> Result<()>;

    /// The activation in place.
    fn activate(&self, x: &Self::Array, kind: Activation) -> Result<()>;
    /// The activation, and what its derivative is made from.
    fn activate_keeping(
        &self,
        x: Self::Array,
        kind: Activation,
    ) -> Result<(Self::Array, Self::Array)>;
    /// `dy *= ∂activation`, from what [`Ops::activate_keeping`] kept.
    fn activate_backward(
        &self,
        dy: &Self::Array,
        kept: &Self::Array,
        kind: Activation,
    ) -> Result<()>;

    /// Causal attention within each span, from the joint product (rows, heads × 3 × dim).
    fn attention(
        &self,
        qkv: Self::Array,
        heads: &Heads<Self::Array>,
        layout: &Self::Layout,
    ) -> Result<Attended<Self::Array>>;
    /// The same over caches, one for each span, to which the spans' keys and values are appended; only the output.
    fn attention_cached(
        &self,
        qkv: &Self::Array,
        heads: &Heads<Self::Array>,
        layout: &Self::Layout,
        layer: usize,
        caches: &mut [&mut Self::Cache],
    ) -> Result<Self::Array>;
    /// The gradient of the joint product, from that of the output.
    fn attention_backward(
        &self,
        d_out: &Self::Array,
        attended: &Attended<Self::Array>,
        heads: &Heads<Self::Array>,
        layout: &Self::Layout,
    ) -> Result<Self::Array>;

    /// A sum of nothing.
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

    /// A flat buffer of these values.
    fn flat(&self, values: &[f32]) -> Result<Self::Flat>;
    /// A flat buffer's values.
    fn read_flat(&self, flat: &Self::Flat) -> Result<Vec<f32>>;
    /// Fills a flat buffer with zeros.
    fn clear(&self, flat: &mut Self::Flat) -> Result<()>;
    /// Multiplies a flat buffer.
    fn scale_flat(&self, flat: &mut Self::Flat, factor: f32) -> Result<()>;
    /// A flat buffer's Euclidean norm, in f64; waits for it.
    fn norm(&self, flat: &Self::Flat) -> Result<f64>;
    /// Parts of a flat buffer as matrices; a later change of the buffer does not show in them.
    fn matrices(&self, flat: &Self::Flat, slots: &[Slot]) -> Result<Vec<Self::Array>>;
    /// One step of AdamW on `values`, with the first and second `moments`.
    fn adamw(
        &self,
        values: &mut Self::Flat,
        gradients: &Self::Flat,
        moments: (&mut Self::Flat, &mut Self::Flat),
        coefficients: &Coefficients,
    ) -> Result<()>;
}
