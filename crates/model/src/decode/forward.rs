//! The forward of decoding: as in training, but attention is over caches, each sequence has its own
//! adapter, and nothing is saved for a backward.

use crate::decode::groups::{Group, Groups};
use crate::error::Result;
use crate::network::Network;
use crate::network::block::Block;
use crate::network::factors::Factors;
use crate::network::linear::Linear;
use crate::network::pass::Shared;
use crate::ops::decoding::Decode;
use crate::ops::{Norm, Span};

/// One sequence's part of a decoding pass.
pub(crate) struct Part<'a, O: Decode> {
    pub(crate) ids: &'a [u32],
    /// Tokens in the cache.
    pub(crate) past: usize,
    pub(crate) cache: &'a mut O::Cache,
    /// None for the base alone.
    pub(crate) factors: Option<&'a Factors<O::Array>>,
}

/// The rows of a pass, and what they run with.
struct DecodingPass<'a, O: Decode> {
    ids: &'a [u32],
    /// The positions of the rows.
    layout: &'a O::Layout,
    groups: Groups<'a, O>,
    /// A cache for each sequence.
    caches: Vec<&'a mut O::Cache>,
}

impl<O: Decode> Network<O> {
    /// The logits after the last id of each part. Appends the keys and values of all ids to the
    /// caches.
    pub(crate) fn decode<'a>(
        &self,
        parts: impl Iterator<Item = Part<'a, O>>,
    ) -> Result<Vec<Vec<f32>>>
    where
        O: 'a,
    {
        let (mut ids, mut spans, mut groups, mut caches) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            let span = Span {
                start: ids.len(),
                len: part.ids.len(),
                past: part.past,
            };
            ids.extend_from_slice(part.ids);
            groups.extend(part.factors.map(|factors| Group {
                rows: span.start..ids.len(),
                factors,
            }));
            spans.push(span);
            caches.push(part.cache);
        }
        let layout = self.ops().layout(&spans, &[])?;
        let mut pass = DecodingPass {
            ids: &ids,
            layout: &layout,
            groups: Groups::new(groups, ids.len()),
            caches,
        };
        let hidden = self.decode_hidden(&mut pass)?;
        let last: Vec<u32> = spans
            .iter()
            .map(|span| u32::try_from(span.start + span.len - 1).unwrap_or(0))
            .collect();
        let logits = self.logits(&hidden, &last)?;
        let rows = logits.chunks(self.config().vocab_size);
        Ok(rows.map(<[f32]>::to_vec).collect())
    }

    /// The residual stream after the last layer, before the final norm: (rows, hidden).
    fn decode_hidden(&self, pass: &mut DecodingPass<'_, O>) -> Result<O::Array> {
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
