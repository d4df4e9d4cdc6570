//! The forward of decoding: as in training, but attention is over caches, each group of rows has
//! its own adapter, and nothing is kept for a backward.

use crate::decode::groups::Groups;
use crate::error::Result;
use crate::network::Network;
use crate::network::block::Block;
use crate::network::linear::Linear;
use crate::network::pass::Shared;
use crate::ops::Norm;
use crate::ops::decoding::Decode;

/// The sequences of one decoding pass.
pub(crate) struct DecodingPass<'a, O: Decode> {
    /// Token ids of all spans.
    pub(crate) ids: &'a [u32],
    /// Where the rows stand.
    pub(crate) layout: &'a O::Layout,
    pub(crate) groups: Groups<'a, O>,
    /// A cache for each span.
    pub(crate) caches: Vec<&'a mut O::Cache>,
}

impl<O: Decode> Network<O> {
    /// The residual stream after the last layer, before the final norm: (rows, hidden). Appends the
    /// rows' keys and values to the caches.
    pub(crate) fn decode_hidden(&self, pass: &mut DecodingPass<'_, O>) -> Result<O::Array> {
        let mut x = self.ops().gather(&self.embedding, pass.ids)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.decode(&self.shared, layer, x, pass)?;
        }
        Ok(x)
    }
}

impl<O: Decode> Block<O> {
    /// Runs the layer.
    fn decode(
        &self,
        shared: &Shared<O>,
        layer: usize,
        x: O::Array,
        pass: &mut DecodingPass<'_, O>,
    ) -> Result<O::Array> {
        let Shared { ops, config, heads } = shared;
        let normed = (&x, &self.attention_norm);
        let qkv = self
            .query_key_value
            .decode_normed(ops, layer, normed, &pass.groups)?;
        let out = ops.attention_cached(&qkv, heads, pass.layout, layer, &mut pass.caches)?;
        let sum = self
            .dense
            .decode(ops, layer, &out, Some(&x), &pass.groups)?;
        let mid = if config.use_parallel_residual {
            &x
        } else {
            &sum
        };
        let normed = (mid, &self.mlp_norm);
        let inner = self.up.decode_normed(ops, layer, normed, &pass.groups)?;
        ops.activate(&inner, config.hidden_act)?;
        self.down
            .decode(ops, layer, &inner, Some(&sum), &pass.groups)
    }
}

impl<O: Decode> Linear<O> {
    /// Multiplies all rows by the frozen weight, adds `plus`, and adds each group's LoRA.
    fn decode(
        &self,
        ops: &O,
        layer: usize,
        x: &O::Array,
        plus: Option<&O::Array>,
        groups: &Groups<'_, O>,
    ) -> Result<O::Array> {
        let y = ops.frozen_linear_by_rows(x, &self.affine, plus)?;
        groups.add_lora(ops, (layer, self.target), x, &y)?;
        Ok(y)
    }

    /// [`Linear::decode`] of the layer norm of `x`.
    fn decode_normed(
        &self,
        ops: &O,
        layer: usize,
        (x, norm): (&O::Array, &Norm<O::Array>),
        groups: &Groups<'_, O>,
    ) -> Result<O::Array> {
        let (normed, y) = ops.normed_linear_by_rows(x, norm, &self.affine)?;
        groups.add_lora(ops, (layer, self.target), &normed, &y)?;
        Ok(y)
    }
}
