//! The operations that the network is written in: arrays, products and norms here, training and
//! decoding in a trait each. Each device implements the three.

pub(crate) mod decoding;
pub(crate) mod factors;
pub(crate) mod training;

use std::ops::Range;

use crate::dropout::{Mask, MaskRow};
use crate::error::Result;
use crate::stored::StoredForm;

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
    /// Leading dimensions of a head that are rotated by position; even.
    pub(crate) rotary_dims: usize,
    /// cos and sin of position × frequency, (positions, `rotary_dims` / 2) each.
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

/// A frozen linear layer's weight, (outputs, inputs), and bias, (1, outputs).
pub(crate) struct Affine<O: Ops> {
    pub(crate) weight: O::Weight,
    pub(crate) bias: Option<O::Array>,
}

/// A device's operations on matrices of f32, (rows, columns) row by row.
///
/// Every reduction has an order that depends on shapes alone, so that a pass repeats bit for bit.
/// An operation that changes a matrix in place takes it by shared reference, because device memory
/// is shared; the network hands over only matrices that it has just made and not shared.
pub(crate) trait Ops: Send + Sync + Sized {
    /// A matrix on the device; clones share it.
    type Array: Clone + Send + Sync + 'static;
    /// A frozen matrix on the device, in the base's precision.
    type Weight: Send + Sync;
    /// A pass's rows, in the form that the operations need.
    type Layout: Send;
    /// A buffer of f32: an adapter's values, their gradients, or a moment of them.
    type Flat: Send;

    /// Copies to the device.
    fn upload(&self, values: &[f32], rows: usize, columns: usize) -> Result<Self::Array>;
    /// A base's tensor in full on the device, shared where it already is there; a vector becomes
    /// one row.
    fn adopt(&self, tensor: &StoredForm) -> Result<Self::Array>;
    /// A base's linear weight in its form on the device, shared where it already is there.
    fn freeze(&self, weight: &StoredForm) -> Result<Self::Weight>;
    /// Waits for all tensors of a base, after the last one was adopted or frozen.
    ///
    /// # Errors
    /// One has values that are not finite or do not fit, if adopting or freezing it did not find
    /// so.
    fn loaded(&self) -> Result<()> {
        Ok(())
    }
    /// Lays out a pass: its sequences, which cover the rows in order, and each row's place in the
    /// dropout mask, which is empty for a pass without dropout.
    fn layout(&self, spans: &[Span], places: &[MaskRow]) -> Result<Self::Layout>;
    /// Copies from the device.
    fn download(&self, x: &Self::Array) -> Result<Vec<f32>>;

    /// The rows of `table` with these numbers.
    fn gather(&self, table: &Self::Array, rows: &[u32]) -> Result<Self::Array>;

    /// `x wᵀ`: (m, k) (n, k).
    fn linear(&self, x: &Self::Array, w: &Self::Array) -> Result<Self::Array>;
    /// `x wᵀ + bias + plus` by a frozen matrix, which is dequantized just before, or multiplied as
    /// its precision says; `plus` is (m, n).
    fn frozen_linear(
        &self,
        x: &Self::Array,
        w: &Affine<Self>,
        plus: Option<&Self::Array>,
    ) -> Result<Self::Array>;
    /// The layer norm of `x`, and [`Ops::frozen_linear`] of it.
    fn normed_linear(
        &self,
        x: &Self::Array,
        norm: &Norm<Self::Array>,
        w: &Affine<Self>,
        plus: Option<&Self::Array>,
    ) -> Result<(Self::Array, Self::Array)> {
        let normed = self.layer_norm(x, norm)?;
        let y = self.frozen_linear(&normed, w, plus)?;
        Ok((normed, y))
    }
    /// LoRA's first product: the masked input x̃, which is `x` itself without a mask, and `x̃ aᵀ`:
    /// (m, k) (rank, k).
    fn lora_a(
        &self,
        x: &Self::Array,
        a: &Self::Array,
        mask: Option<(&Mask, &Self::Layout)>,
    ) -> Result<(Self::Array, Self::Array)>;
    /// LoRA's second product: `y[first..] += scale × x bᵀ`, on as many rows of `y` as `x` has:
    /// (m, rank) (n, rank).
    fn add_lora_b(
        &self,
        y: &Self::Array,
        first: usize,
        x: &Self::Array,
        b: &Self::Array,
        scale: f32,
    ) -> Result<()>;

    /// The layer norm of each row.
    fn layer_norm(&self, x: &Self::Array, norm: &Norm<Self::Array>) -> Result<Self::Array>;

    /// A flat buffer of these values.
    fn flat(&self, values: &[f32]) -> Result<Self::Flat>;
    /// Parts of a flat buffer as matrices; a later change of the buffer does not show in them.
    fn matrices(&self, flat: &Self::Flat, slots: &[Slot]) -> Result<Vec<Self::Array>>;
}
