//! The forward of decoding: as in training, but attention is over pages, each sequence has its own
//! adapter, and nothing is saved for a backward.

use super::Network;
use super::block::Block;
use super::linear::Linear;
use super::pass::Shared;
use crate::activation::Activation;
use crate::error::Result;
use crate::ops::decoding::{Decode, Phase, Sequences};
use crate::ops::{Norm, Span};

/// One sequence's rows of a pass.
pub(crate) struct Rows<'a, O: Decode> {
    pub(crate) phase: Phase,
    pub(crate) ids: &'a [u32],
    /// Tokens in the pages.
    pub(crate) past: usize,
    pub(crate) pages: &'a [u32],
    /// None for the base alone.
    pub(crate) adapter: Option<&'a O::Adapter>,
}

/// A pass of one phase.
struct DecodingPass<'a, 'l, O: Decode> {
    phase: Phase,
    layout: &'a O::DecodeLayout<'l>,
}

impl<O: Decode> Network<O> {
    /// The logits after the last id of each sequence. Appends the keys and values of all ids to the
    /// pages. Prompts and answers take a pass each.
    pub(crate) fn decode(&self, pages: &O::Pages, all: &[Rows<'_, O>]) -> Result<Vec<Vec<f32>>> {
        let mut logits = vec![Vec::new(); all.len()];
        for phase in [Phase::Decode, Phase::Prefill] {
            let of_phase = |&number: &usize| all[number].phase == phase;
            let numbers: Vec<usize> = (0..all.len()).filter(of_phase).collect();
            if numbers.is_empty() {
                continue;
            }
            let rows = numbers.iter().map(|&number| &all[number]);
            let sequences = Sequences::new(phase, rows);
            let found = self.decode_pass(pages, &sequences)?;
            for (number, row) in numbers.into_iter().zip(found) {
                logits[number] = row;
            }
        }
        Ok(logits)
    }

    /// The logits after the last id of each sequence.
    fn decode_pass(&self, pages: &O::Pages, sequences: &Sequences<'_, O>) -> Result<Vec<Vec<f32>>> {
        let ops = self.ops();
        let layout = ops.lay_out_sequences(pages, sequences)?;
        let pass = DecodingPass {
            phase: sequences.phase,
            layout: &layout,
        };
        let last = match sequences.phase {
            Phase::Decode => None,
            Phase::Prefill => Some(sequences.last_rows(ops)),
        };
        let logits = ops.run(&layout, || self.next_logits(&pass, last.as_deref()))?;
        ops.read_rows(&logits, sequences.spans.len())
    }

    /// The logits of these rows of a pass, or of all.
    fn next_logits(
        &self,
        pass: &DecodingPass<'_, '_, O>,
        rows: Option<&[u32]>,
    ) -> Result<O::Array> {
        let ops = self.ops();
        let mut x = ops.embed(&self.embedding, pass.layout)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.decode(&self.shared, layer, x, pass)?;
        }
        if let Some(rows) = rows {
            x = ops.gather(&x, rows)?;
        }
        let normed = ops.layer_norm(&x, &self.final_norm)?;
        ops.linear_by_rows(Phase::Decode, &normed, &self.head)
    }
}

impl<'a, O: Decode> Sequences<'a, O> {
    fn new<'r>(phase: Phase, all: impl Iterator<Item = &'r Rows<'a, O>>) -> Self
    where
        'a: 'r,
        O: 'r,
    {
        let mut sequences = Self {
            phase,
            ids: Vec::new(),
            spans: Vec::new(),
            pages: Vec::new(),
            adapters: Vec::new(),
        };
        for rows in all {
            sequences.spans.push(Span {
                start: sequences.ids.len(),
                len: rows.ids.len(),
                past: rows.past,
            });
            sequences.ids.extend_from_slice(rows.ids);
            sequences.pages.push(rows.pages);
            sequences.adapters.push(rows.adapter);
        }
        sequences
    }

    /// The last row of each sequence, padded.
    fn last_rows(&self, ops: &O) -> Vec<u32> {
        let ends = self.spans.iter().map(|span| span.start + span.len - 1);
        let mut rows: Vec<u32> = ends.map(|row| row as u32).collect();
        rows.resize(ops.padded_rows(rows.len()), 0);
        rows
    }
}

impl<O: Decode> Block<O> {
    /// Runs the layer.
    fn decode(
        &self,
        shared: &Shared<O>,
        layer: usize,
        x: O::Array,
        pass: &DecodingPass<'_, '_, O>,
    ) -> Result<O::Array> {
        let Shared { ops, config, heads } = shared;
        let normed = (&x, &self.attention_norm);
        let qkv = self
            .query_key_value
            .decode_normed(ops, layer, normed, None, pass)?;
        let out = ops.attend_pages(&qkv, heads, pass.layout, layer)?;
        let sum = self.dense.decode(ops, layer, (&out, &x), pass)?;
        let mid = if config.use_parallel_residual {
            &x
        } else {
            &sum
        };
        let normed = (mid, &self.mlp_norm);
        let activation = Some(config.hidden_act);
        let inner = self
            .up
            .decode_normed(ops, layer, normed, activation, pass)?;
        self.down.decode(ops, layer, (&inner, &sum), pass)
    }
}

impl<O: Decode> Linear<O> {
    /// Multiplies all rows of `x` by the frozen weight, adds `plus`, and adds each sequence's LoRA.
    fn decode(
        &self,
        ops: &O,
        layer: usize,
        (x, plus): (&O::Array, &O::Array),
        pass: &DecodingPass<'_, '_, O>,
    ) -> Result<O::Array> {
        let y = ops.frozen_linear_by_rows(pass.phase, x, &self.affine, Some(plus))?;
        if ops.has_lora(pass.layout, self.target) {
            ops.add_lora(pass.layout, (layer, self.target), x, &y)?;
        }
        Ok(y)
    }

    /// [`Linear::decode`] of the layer norm of `x`, without a sum, and its activation if one is
    /// named.
    fn decode_normed(
        &self,
        ops: &O,
        layer: usize,
        normed: (&O::Array, &Norm<O::Array>),
        activation: Option<Activation>,
        pass: &DecodingPass<'_, '_, O>,
    ) -> Result<O::Array> {
        let has_lora = ops.has_lora(pass.layout, self.target);
        let at_once = activation.filter(|_| !has_lora);
        let (normed, y) = ops.normed_linear_by_rows(pass.phase, normed, &self.affine, at_once)?;
        if has_lora {
            ops.add_lora(pass.layout, (layer, self.target), &normed, &y)?;
            if let Some(kind) = activation {
                ops.activate(&y, kind)?;
            }
        }
        Ok(y)
    }
}
