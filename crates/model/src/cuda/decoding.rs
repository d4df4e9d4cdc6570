//! Decoding on the GPU.

use parking_lot::MutexGuard;

use super::adapter::Adapter;
use super::array::{Array, Buffer, Element};
use super::attention::{self, tiled};
use super::context::Cuda;
use super::decode_layout::{PASS_ROWS, Tables};
use super::few_rows::{Beside, MOST_BESIDE};
use super::fp8::Added;
use super::frozen::Frozen;
use super::launch::activation_id;
use super::pages::Pages;
use super::results::Reading;
use crate::activation::Activation;
use crate::error::Result;
use crate::gpu_limits::GPU_LARGEST_RANK;
use crate::logprobs::RowScore;
use crate::ops::decoding::{Decode, PageShape, Phase, Sequences};
use crate::ops::factors::Factors;
use crate::ops::{Affine, Heads, Norm, Ops, Slot};
use crate::sampling::Logits;
use crate::target::Target;

/// Threads of a block of answers' attention, as in `pages.cu`.
const ANSWER_THREADS: usize = 256;

/// The sequences of a pass on the GPU.
pub(crate) struct DecodeLayout<'a> {
    sequences: &'a Sequences<'a, Cuda>,
    tables: Tables,
    /// Attention tiles of prompts; `None` in a decode pass.
    tiles: Option<Buffer<u32>>,
}

impl Decode for Cuda {
    type Pages = Pages;
    type Adapter = Adapter;
    type DecodeLayout<'a> = DecodeLayout<'a>;
    type PassLock<'a> = MutexGuard<'a, ()>;
    type Reading = Reading;

    fn lock_pass(&self) -> MutexGuard<'_, ()> {
        self.pass.lock()
    }

    fn pages(&self, shape: PageShape) -> Pages {
        Pages::new(shape, self.element.bytes())
    }

    fn resize(&self, pages: &Pages, count: usize) -> Result<()> {
        pages.resize(self, count)
    }

    fn adapter_matrices(&self, values: &[f32], slots: &[Slot]) -> Result<Vec<Array>> {
        let all = self.upload_values(values)?;
        let part = |slot: &Slot| all.part(slot.range.start, slot.rows, slot.columns);
        Ok(slots.iter().map(part).collect())
    }

    fn copy_page(&self, pages: &Pages, from: u32, to: u32) -> Result<()> {
        pages.copy(self, from, to)
    }

    fn adapter(&self, factors: Factors<Array>, layers: usize) -> Result<Adapter> {
        Adapter::new(self, factors, layers)
    }

    fn padded_rows(&self, rows: usize) -> usize {
        self.decode_rows(rows)
    }

    fn lay_out_sequences<'a>(
        &'a self,
        pages: &'a Pages,
        sequences: &'a Sequences<'a, Self>,
    ) -> Result<DecodeLayout<'a>> {
        let tiles = match sequences.phase {
            Phase::Prefill => Some(self.page_tiles(&sequences.spans)?),
            Phase::Decode => None,
        };
        Ok(DecodeLayout {
            sequences,
            tables: self.tables(pages, sequences)?,
            tiles,
        })
    }

    fn run(&self, layout: &DecodeLayout<'_>, compute: impl Fn() -> Result<Array>) -> Result<Array> {
        match layout.tables.key() {
            Some(key) if layout.sequences.phase == Phase::Decode => self.replayed(key, compute),
            _ => compute(),
        }
    }

    fn begin_reading(&self, logits: Array, highest: &[bool]) -> Result<Reading> {
        self.read_later(logits, highest)
    }

    fn finish_reading(&self, reading: Reading) -> Result<Vec<Logits>> {
        self.logits_of(reading)
    }

    fn score_rows(&self, logits: &Array, tokens: &[u32], best: usize) -> Result<Vec<RowScore>> {
        self.scores(logits, tokens, best)
    }

    fn embed(&self, table: &Array, layout: &DecodeLayout<'_>) -> Result<Array> {
        let out = self.empty(layout.tables.padded, table.columns)?;
        let args = [
            (&out).into(),
            table.into(),
            layout.tables.ids.into(),
            out.rows.into(),
            out.columns.into(),
        ];
        self.by_rows("gather", &[&out, table], out.rows, &args)?;
        Ok(out)
    }

    fn linear_by_rows(&self, phase: Phase, x: &Array, w: &Array) -> Result<Array> {
        if phase == Phase::Decode
            && let Some(out) = self.few_rows_product(x, w)?
        {
            return Ok(out);
        }
        self.planned_linear(x, w, Some(planned_rows(phase)))
    }

    fn frozen_linear_by_rows(
        &self,
        phase: Phase,
        x: &Array,
        w: &Affine<Self>,
        plus: Option<&Array>,
    ) -> Result<Array> {
        let bias = w.bias.as_ref();
        if phase == Phase::Decode
            && let Some(out) = self.few_rows_linear(x, &w.weight, Added { bias, plus }, None)?
        {
            return Ok(out);
        }
        self.planned_frozen_linear(x, w, plus, Some(planned_rows(phase)))
    }

    fn normed_linear_by_rows(
        &self,
        phase: Phase,
        (x, norm): (&Array, &Norm<Array>),
        w: &Affine<Self>,
        activation: Option<Activation>,
    ) -> Result<(Array, Array)> {
        if phase == Phase::Decode && self.can_multiply_few() {
            let normed = self.layer_norm(x, norm)?;
            let (bias, plus) = (w.bias.as_ref(), None);
            let added = Added { bias, plus };
            if let Some(y) = self.few_rows_linear(&normed, &w.weight, added, activation)? {
                return Ok((normed, y));
            }
        }
        let planned = Some(planned_rows(phase));
        let by_codes = match &w.weight {
            Frozen::Fp8(codes) => self.fp8_normed((x, norm), codes, w.bias.as_ref(), planned)?,
            _ => None,
        };
        let (normed, y) = match by_codes {
            Some(both) => both,
            None => {
                let normed = self.layer_norm(x, norm)?;
                let y = self.planned_frozen_linear(&normed, w, None, planned)?;
                (normed, y)
            }
        };
        if let Some(kind) = activation {
            self.activate(&y, kind)?;
        }
        Ok((normed, y))
    }

    fn has_lora(&self, layout: &DecodeLayout<'_>, target: Target) -> bool {
        layout.tables.targets[target.index()]
    }

    fn add_lora(
        &self,
        layout: &DecodeLayout<'_>,
        (layer, target): (usize, Target),
        x: &Array,
        y: &Array,
    ) -> Result<()> {
        match (layout.sequences.phase, layout.tables.rank) {
            (Phase::Decode, Some(rank)) => {
                self.add_lora_by_rows(layout, rank, (layer, target), (x, y))
            }
            _ => self.add_lora_by_sequences(layout, (layer, target), (x, y)),
        }
    }

    fn activate(&self, x: &Array, kind: Activation) -> Result<()> {
        let args = [
            x.into(),
            x.into(),
            activation_id(kind).into(),
            x.len().into(),
        ];
        self.by_values("activate", &[x], x.len(), &args)
    }

    fn attend_pages(
        &self,
        (x, norm): (&Array, &Norm<Array>),
        w: &Affine<Self>,
        heads: &Heads<Array>,
        (layout, layer): (&DecodeLayout<'_>, usize),
    ) -> Result<Array> {
        attention::check(heads)?;
        let (place, phase) = ((layer, Target::QueryKeyValue), layout.sequences.phase);
        let out = self.empty(layout.tables.padded, heads.count * heads.dim)?;
        if phase == Phase::Decode
            && let Some(rank) = layout.tables.rank
        {
            let (qkv, shrunk) = self.joint_product((x, norm), w, layout, rank, place)?;
            self.attend_answers((&out, &qkv), shrunk.as_ref(), heads, layout, layer)?;
            return Ok(out);
        }
        let (normed, qkv) = self.normed_linear_by_rows(phase, (x, norm), w, None)?;
        if self.has_lora(layout, place.1) {
            self.add_lora(layout, place, &normed, &qkv)?;
        }
        self.append_to_pages(&qkv, heads, layout, layer)?;
        match layout.tiles.as_ref().zip(tiled(&qkv, heads)) {
            Some((tiles, size)) => {
                let Tables { pages, width, .. } = layout.tables;
                let pages = (pages, width, layer);
                self.attend_pages_by_tiles((&out, &qkv), heads, tiles, pages, size)?;
            }
            None => self.attend_rows((&out, &qkv), heads, layout, layer)?,
        }
        Ok(out)
    }
}

impl Cuda {
    /// Adds each sequence's LoRA, one sequence after the other.
    fn add_lora_by_sequences(
        &self,
        layout: &DecodeLayout<'_>,
        (layer, target): (usize, Target),
        (x, y): (&Array, &Array),
    ) -> Result<()> {
        let Sequences {
            phase,
            spans,
            adapters,
            ..
        } = layout.sequences;
        let planned = Some(planned_rows(*phase));
        for (span, adapter) in spans.iter().zip(adapters) {
            let factors = adapter.map(AsRef::as_ref);
            let factor = factors.and_then(|factors: &Factors<Array>| factors.get(layer, target));
            let Some(factor) = factor else { continue };
            let rows = |of: &Array| of.part(span.start * of.columns, span.len, of.columns);
            let (_, shrunk) = self.lora_a_forward(&rows(x), &factor.a, None, planned)?;
            self.lora_b_into(&rows(y), (&shrunk, &factor.b), factor.scale, planned)?;
        }
        Ok(())
    }

    /// Adds each row's LoRA; `rank` is the largest rank.
    fn add_lora_by_rows(
        &self,
        layout: &DecodeLayout<'_>,
        rank: usize,
        place: (usize, Target),
        (x, y): (&Array, &Array),
    ) -> Result<()> {
        let shrunk = self.shrink_rows(layout, rank, place, x)?;
        let args = [
            y.into(),
            (&shrunk).into(),
            layout.tables.adapters.into(),
            factor_index(place).into(),
            y.columns.into(),
        ];
        let kernel = self.kernel("rows_lora_b", y.element, None);
        self.launch(
            &kernel,
            (y.columns.div_ceil(256), layout.tables.rows),
            256,
            &args,
        )
    }

    /// Each row's product with its adapter's A; `rank` is the largest rank.
    fn shrink_rows(
        &self,
        layout: &DecodeLayout<'_>,
        rank: usize,
        place: (usize, Target),
        x: &Array,
    ) -> Result<Array> {
        let shrunk = self.empty_of(Element::F32, layout.tables.rows, GPU_LARGEST_RANK)?;
        let args = [
            (&shrunk).into(),
            x.into(),
            layout.tables.adapters.into(),
            factor_index(place).into(),
            x.columns.into(),
        ];
        let kernel = self.kernel("rows_lora_a", x.element, None);
        self.launch(&kernel, (layout.tables.rows, rank.div_ceil(8)), 256, &args)?;
        Ok(shrunk)
    }

    /// The joint product of a layer norm of answers, and each row's product with its adapter's A if
    /// any has one; `rank` is the largest rank.
    fn joint_product(
        &self,
        (x, norm): (&Array, &Norm<Array>),
        w: &Affine<Self>,
        layout: &DecodeLayout<'_>,
        rank: usize,
        place: (usize, Target),
    ) -> Result<(Array, Option<Array>)> {
        let (has_lora, rows) = (self.has_lora(layout, place.1), layout.tables.rows);
        if !has_lora || !self.can_multiply_few() || x.rows > MOST_BESIDE {
            let (normed, qkv) = self.normed_linear_by_rows(Phase::Decode, (x, norm), w, None)?;
            let shrunk = match has_lora {
                true => Some(self.shrink_rows(layout, rank, place, &normed)?),
                false => None,
            };
            return Ok((qkv, shrunk));
        }
        let normed = self.layer_norm(x, norm)?;
        let shrunk = self.empty_of(Element::F32, rows, GPU_LARGEST_RANK)?;
        let beside = Beside {
            shrunk: &shrunk,
            adapters: layout.tables.adapters,
            factor: factor_index(place),
            // A recorded pass serves all ranks up to the next multiple of 8.
            rank: rank.next_multiple_of(8),
        };
        let bias = w.bias.as_ref();
        let qkv = self.few_rows_linear_beside(&normed, &w.weight, bias, &beside)?;
        if let Some(qkv) = qkv {
            return Ok((qkv, Some(shrunk)));
        }
        let planned = Some(planned_rows(Phase::Decode));
        let qkv = self.planned_frozen_linear(&normed, w, None, planned)?;
        let shrunk = self.shrink_rows(layout, rank, place, &normed)?;
        Ok((qkv, Some(shrunk)))
    }

    /// Completes the joint product of answers by LoRA and rotation, appends their keys and values,
    /// and computes their attention, in one launch.
    fn attend_answers(
        &self,
        (out, qkv): (&Array, &Array),
        shrunk: Option<&Array>,
        heads: &Heads<Array>,
        layout: &DecodeLayout<'_>,
        layer: usize,
    ) -> Result<()> {
        let Tables {
            rows,
            splits,
            adapters,
            ..
        } = layout.tables;
        let parts = self.empty_of(Element::F32, rows * heads.count * splits, heads.dim + 2)?;
        let args = [
            out.into(),
            (&parts).into(),
            qkv.into(),
            layout.tables.pages.into(),
            layout.tables.positions.into(),
            layout.tables.width.into(),
            heads.count.into(),
            heads.dim.into(),
            layer.into(),
            splits.into(),
            shrunk.map_or(0, |_| adapters).into(),
            shrunk.map_or(0, Array::address).into(),
            factor_index((layer, Target::QueryKeyValue)).into(),
            (&heads.cos).into(),
            (&heads.sin).into(),
            (heads.rotary_dims / 2).into(),
        ];
        let (element, lanes) = (qkv.element.name(), lanes(heads.dim));
        let kernel = format!("attend_answers_{element}_{lanes}");
        self.launch(&kernel, (heads.count * splits, rows), ANSWER_THREADS, &args)?;
        self.combine_splits((out, &parts), heads, layout)
    }

    /// Rotates queries and keys in place, and appends keys and values to their pages.
    fn append_to_pages(
        &self,
        qkv: &Array,
        heads: &Heads<Array>,
        layout: &DecodeLayout<'_>,
        layer: usize,
    ) -> Result<()> {
        let args = [
            qkv.into(),
            (&heads.cos).into(),
            (&heads.sin).into(),
            layout.tables.pages.into(),
            layout.tables.numbers.into(),
            layout.tables.positions.into(),
            layout.tables.width.into(),
            layout.tables.rows.into(),
            heads.count.into(),
            heads.dim.into(),
            (heads.rotary_dims / 2).into(),
            layer.into(),
        ];
        let kernel = self.kernel("append_pages", qkv.element, None);
        self.launch_rows(&kernel, layout.tables.rows * heads.count, &args)
    }

    /// Computes the attention of all rows over their pages.
    fn attend_rows(
        &self,
        (out, qkv): (&Array, &Array),
        heads: &Heads<Array>,
        layout: &DecodeLayout<'_>,
        layer: usize,
    ) -> Result<()> {
        let Tables { rows, splits, .. } = layout.tables;
        let parts = self.empty_of(Element::F32, rows * heads.count * splits, heads.dim + 2)?;
        let args = [
            out.into(),
            (&parts).into(),
            qkv.into(),
            layout.tables.pages.into(),
            layout.tables.numbers.into(),
            layout.tables.positions.into(),
            layout.tables.width.into(),
            heads.count.into(),
            heads.dim.into(),
            layer.into(),
            splits.into(),
        ];
        let kernel = format!("attend_pages_{}_{}", qkv.element.name(), lanes(heads.dim));
        self.launch(&kernel, (heads.count * splits, rows), 128, &args)?;
        self.combine_splits((out, &parts), heads, layout)
    }

    /// Adds up the attention of the rows that have several splits.
    fn combine_splits(
        &self,
        (out, parts): (&Array, &Array),
        heads: &Heads<Array>,
        layout: &DecodeLayout<'_>,
    ) -> Result<()> {
        let Tables { rows, splits, .. } = layout.tables;
        if splits == 1 {
            return Ok(());
        }
        let args = [
            out.into(),
            parts.into(),
            layout.tables.positions.into(),
            heads.count.into(),
            heads.dim.into(),
            splits.into(),
        ];
        let kernel = self.kernel("combine_splits", out.element, None);
        self.launch(&kernel, (heads.count, rows), 128, &args)
    }
}

/// The place of a layer's factors of a target in an adapter's table.
fn factor_index((layer, target): (usize, Target)) -> usize {
    layer * Target::ALL.len() + target.index()
}

/// Returns the typical number of rows, for which a product's algorithm is chosen.
fn planned_rows(phase: Phase) -> usize {
    match phase {
        Phase::Decode => PASS_ROWS,
        Phase::Prefill => 512,
    }
}

/// Returns the lanes per key, each with eight dimensions; 1 selects the kernel for any dimension.
fn lanes(dim: usize) -> usize {
    if dim.is_multiple_of(8) {
        (dim / 8).next_power_of_two().max(8)
    } else {
        1
    }
}
