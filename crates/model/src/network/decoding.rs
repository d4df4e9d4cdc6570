//! The forward of decoding: as in training, but attention is over pages, each sequence has its own
//! adapter, and nothing is saved for a backward.

use super::Network;
use super::block::Block;
use super::linear::Linear;
use super::pass::Shared;
use crate::activation::Activation;
use crate::error::Result;
use crate::logprobs::RowScore;
use crate::ops::decoding::{Decode, Phase, SCORED_ROWS, Sequences};
use crate::ops::{Norm, Span};
use crate::sampling::Logits;

/// One sequence's rows of a pass.
pub(crate) struct Rows<'a, O: Decode> {
    pub(crate) phase: Phase,
    pub(crate) ids: &'a [u32],
    /// Tokens in the pages.
    pub(crate) past: usize,
    pub(crate) pages: &'a [u32],
    /// None for the base alone.
    pub(crate) adapter: Option<&'a O::Adapter>,
    pub(crate) targets: Targets<'a>,
}

/// What a pass tells beside the logits of a sequence: the scores of the token after each of its
/// first rows, none without ids.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Targets<'a> {
    /// The tokens, at most one for each row.
    pub(crate) ids: &'a [u32],
    /// How many of the likeliest tokens are told with each.
    pub(crate) best: usize,
    /// Whether the highest logits suffice.
    pub(crate) highest: bool,
}

/// What a pass tells of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Decoded {
    /// The logits after the last row.
    pub(crate) logits: Logits,
    /// One for each target.
    pub(crate) scores: Vec<RowScore>,
}

/// Passes whose logits are being read.
pub(crate) struct Begun<O: Decode> {
    rows: usize,
    passes: Vec<BegunPass<O>>,
}

struct BegunPass<O: Decode> {
    /// The place of each sequence among those of all passes.
    numbers: Vec<usize>,
    scores: Vec<Vec<RowScore>>,
    reading: O::Reading,
}

/// A pass of one phase.
struct DecodingPass<'a, 'l, O: Decode> {
    phase: Phase,
    layout: &'a O::DecodeLayout<'l>,
}

impl<O: Decode> Network<O> {
    /// Begins to compute the logits after the last id of each sequence, and the scores of its
    /// targets. Appends the keys and values of all ids to the pages. Prompts and answers take a
    /// pass each.
    pub(crate) fn begin_decoding(&self, pages: &O::Pages, all: &[Rows<'_, O>]) -> Result<Begun<O>> {
        let mut passes = Vec::with_capacity(2);
        for phase in [Phase::Decode, Phase::Prefill] {
            let of_phase = |&number: &usize| all[number].phase == phase;
            let numbers: Vec<usize> = (0..all.len()).filter(of_phase).collect();
            if numbers.is_empty() {
                continue;
            }
            let rows = numbers.iter().map(|&number| &all[number]);
            let sequences = Sequences::new(phase, rows.clone());
            let targets: Vec<_> = rows.map(|rows| rows.targets).collect();
            let (scores, reading) = self.begin_pass(pages, &sequences, &targets)?;
            passes.push(BegunPass {
                numbers,
                scores,
                reading,
            });
        }
        let rows = all.len();
        Ok(Begun { rows, passes })
    }

    /// Waits for what was begun. Returns what is told of each sequence.
    pub(crate) fn finish_decoding(&self, begun: Begun<O>) -> Result<Vec<Decoded>> {
        let mut decoded: Vec<Option<Decoded>> = vec![None; begun.rows];
        for pass in begun.passes {
            let logits = self.ops().finish_reading(pass.reading)?;
            let told = logits.into_iter().zip(pass.scores);
            for (number, (logits, scores)) in pass.numbers.into_iter().zip(told) {
                decoded[number] = Some(Decoded { logits, scores });
            }
        }
        Ok(decoded.into_iter().flatten().collect())
    }

    fn begin_pass(
        &self,
        pages: &O::Pages,
        sequences: &Sequences<'_, O>,
        targets: &[Targets<'_>],
    ) -> Result<(Vec<Vec<RowScore>>, O::Reading)> {
        let ops = self.ops();
        let layout = ops.lay_out_sequences(pages, sequences)?;
        let pass = DecodingPass {
            phase: sequences.phase,
            layout: &layout,
        };
        let mut scores = vec![Vec::new(); targets.len()];
        let logits = match sequences.phase {
            Phase::Decode => ops.run(&layout, || self.head_logits(&self.hidden(&pass)?))?,
            Phase::Prefill => {
                let x = ops.run(&layout, || self.hidden(&pass))?;
                for (number, targets) in targets.iter().enumerate() {
                    let first = sequences.spans[number].start;
                    scores[number] = self.score(&x, first, targets)?;
                }
                self.head_logits(&ops.gather(&x, &sequences.last_rows(ops))?)?
            }
        };
        let highest: Vec<bool> = targets.iter().map(|targets| targets.highest).collect();
        Ok((scores, ops.begin_reading(logits, &highest)?))
    }

    /// The scores of a sequence's targets. Their logits are made and left again a few rows at a
    /// time, of this sequence alone, so that they don't depend on other sequences.
    fn score(&self, x: &O::Array, first: usize, targets: &Targets<'_>) -> Result<Vec<RowScore>> {
        let ops = self.ops();
        let mut scores = Vec::with_capacity(targets.ids.len());
        for tokens in targets.ids.chunks(SCORED_ROWS) {
            let start = first + scores.len();
            let rows = start..start + tokens.len();
            let mut rows: Vec<u32> = rows.map(|row| row as u32).collect();
            rows.resize(ops.padded_rows(rows.len()), 0);
            let logits = self.head_logits(&ops.gather(x, &rows)?)?;
            scores.extend(ops.score_rows(&logits, tokens, targets.best)?);
        }
        Ok(scores)
    }

    /// The residual stream after all layers.
    fn hidden(&self, pass: &DecodingPass<'_, '_, O>) -> Result<O::Array> {
        let ops = self.ops();
        let mut x = ops.embed(&self.embedding, pass.layout)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.decode(&self.shared, layer, x, pass)?;
        }
        Ok(x)
    }

    /// The logits of these rows.
    fn head_logits(&self, x: &O::Array) -> Result<O::Array> {
        let ops = self.ops();
        let normed = ops.layer_norm(x, &self.final_norm)?;
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
        let affine = &self.query_key_value.affine;
        let out = ops.attend_pages(normed, affine, heads, (pass.layout, layer))?;
        let sum = self.dense.decode(ops, layer, (&out, &x), pass)?;
        let mid = if config.use_parallel_residual {
            &x
        } else {
            &sum
        };
        let normed = (mid, &self.mlp_norm);
        let inner = self
            .up
            .decode_activated(ops, layer, normed, config.hidden_act, pass)?;
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

    /// The activation of the product of the layer norm of `x`, with each sequence's LoRA.
    fn decode_activated(
        &self,
        ops: &O,
        layer: usize,
        normed: (&O::Array, &Norm<O::Array>),
        activation: Activation,
        pass: &DecodingPass<'_, '_, O>,
    ) -> Result<O::Array> {
        let has_lora = ops.has_lora(pass.layout, self.target);
        let at_once = (!has_lora).then_some(activation);
        let (normed, y) = ops.normed_linear_by_rows(pass.phase, normed, &self.affine, at_once)?;
        if has_lora {
            ops.add_lora(pass.layout, (layer, self.target), &normed, &y)?;
            ops.activate(&y, activation)?;
        }
        Ok(y)
    }
}
