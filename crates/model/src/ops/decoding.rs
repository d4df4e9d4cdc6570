//! What decoding needs of a device beside [`Ops`]: caches, and attention over them.

use super::{Affine, Heads, Norm, Ops};
use crate::activation::Activation;
use crate::error::Result;

/// A device's operations of decoding.
pub(crate) trait Decode: Ops {
    /// Keys and values of one sequence, all layers.
    type Cache: Send + 'static;

    /// An empty cache.
    fn cache(&self, layers: usize, heads: usize) -> Self::Cache;

    /// [`Ops::frozen_linear`] in which no row's result depends on another row.
    fn frozen_linear_by_rows(
        &self,
        x: &Self::Array,
        w: &Affine<Self>,
        plus: Option<&Self::Array>,
    ) -> Result<Self::Array> {
        self.frozen_linear(x, w, plus)
    }
    /// [`Ops::normed_linear`] in which no row's result depends on another row.
    fn normed_linear_by_rows(
        &self,
        x: &Self::Array,
        norm: &Norm<Self::Array>,
        w: &Affine<Self>,
    ) -> Result<(Self::Array, Self::Array)> {
        self.normed_linear(x, norm, w, None)
    }

    /// The activation in place.
    fn activate(&self, x: &Self::Array, kind: Activation) -> Result<()>;

    /// Causal attention over caches, one for each span, to which the spans' keys and values are
    /// appended; from the joint product (rows, heads × 3 × dim).
    fn attention_cached(
        &self,
        qkv: &Self::Array,
        heads: &Heads<Self::Array>,
        layout: &Self::Layout,
        layer: usize,
        caches: &mut [&mut Self::Cache],
    ) -> Result<Self::Array>;
}
