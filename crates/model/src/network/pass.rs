//! The rows and the adapter of a pass of training or evaluation, and the parts that all layers
//! share.

use crate::config::Config;
use crate::dropout::{Dropout, Mask};
use crate::ops::factors::{Factor, Factors};
use crate::ops::{Heads, Ops};
use crate::target::Target;

/// The parts that all layers of a network share.
pub(crate) struct Shared<O: Ops> {
    pub(crate) ops: O,
    pub(crate) config: Config,
    pub(crate) heads: Heads<O::Array>,
}

/// The sequences of one forward, all with the same adapter.
pub(crate) struct Pass<'a, O: Ops> {
    /// Token ids of all spans.
    pub(crate) ids: &'a [u32],
    /// The positions of the rows.
    pub(crate) layout: &'a O::Layout,
    /// None for the base alone.
    pub(crate) factors: Option<&'a Factors<O::Array>>,
    /// Dropout on the adapter's inputs.
    pub(crate) dropout: Option<&'a Dropout>,
}

impl<O: Ops> Pass<'_, O> {
    /// The factors of a product.
    pub(super) fn factor(&self, layer: usize, target: Target) -> Option<&Factor<O::Array>> {
        self.factors?.get(layer, target)
    }

    /// The dropout mask of a product's input.
    pub(super) fn mask(&self, layer: usize, target: Target) -> Option<Mask> {
        self.dropout.map(|dropout| dropout.mask(layer, target))
    }

    /// The lowest layer that has factors.
    pub(super) fn first_adapted(&self) -> Option<usize> {
        self.factors?.first_adapted()
    }
}
