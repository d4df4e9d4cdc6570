//! Decoding on the GPU.

use parking_lot::MutexGuard;

use super::adapter::Adapter;
use super::array::Array;
use super::attention::{self, tiled};
use super::context::Cuda;
use super::decode_layout::{DecodeLayout, Tables, planned_rows};
use super::fp8::Added;
use super::frozen::Frozen;
use super::launch::activation_id;
use super::pages::Pages;
use super::results::Reading;
use crate::activation::Activation;
use crate::error::Result;
use crate::logprobs::RowScore;
use crate::ops::decoding::{Decode, PageShape, Phase, Sequences};
use crate::ops::factors::Factors;
use crate::ops::{Affine, Heads, Norm, Ops, Slot};
use crate::sampling::Logits;
use crate::target::Target;

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
