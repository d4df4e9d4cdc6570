//! The CPU's operations of decoding. Rows are independent tasks, so both phases compute alike.

use candle_core::Tensor;
use parking_lot::Mutex;
use rayon::prelude::*;

use super::adapter::Adapter;
use super::storage::{columns, read, write};
use super::{Cpu, attention, by_rows, frozen, kernels, plus_matrix, rows};
use crate::activation::Activation;
use crate::error::Result;
use crate::logprobs::RowScore;
use crate::ops::decoding::{Decode, PageShape, Phase, Sequences};
use crate::ops::factors::Factors;
use crate::ops::{Affine, Heads, Norm, Ops, Span};
use crate::sampling::Logits;
use crate::target::Target;

/// The most multiplications of a pass that is faster on the caller's thread.
const ALONE_PASS: u64 = 1 << 21;

/// Pages of keys and values, each of all layers.
pub(crate) struct Pages {
    shape: PageShape,
    pages: Mutex<Vec<Vec<f32>>>,
}

/// A pass's sequences, and the pages.
pub(crate) struct DecodeLayout<'a> {
    sequences: &'a Sequences<'a, Cpu>,
    pages: &'a Pages,
}

impl Decode for Cpu {
    type Pages = Pages;
    type Adapter = Adapter;
    type DecodeLayout<'a> = DecodeLayout<'a>;
    type PassLock<'a> = ();
    type Reading = Vec<Logits>;

    fn lock_pass(&self) {}

    fn pages(&self, shape: PageShape) -> Pages {
        Pages {
            shape,
            pages: Mutex::default(),
        }
    }

    fn resize(&self, pages: &Pages, count: usize) -> Result<()> {
        let len = pages.shape.len();
        pages.pages.lock().resize_with(count, || vec![0.0; len]);
        Ok(())
    }

    fn copy_page(&self, pages: &Pages, from: u32, to: u32) -> Result<()> {
        let mut pages = pages.pages.lock();
        let (from, to) = (from as usize, to as usize);
        pages[to] = pages[from].clone();
        Ok(())
    }

    fn adapter(&self, factors: Factors<Tensor>, layers: usize) -> Result<Adapter> {
        Adapter::new(factors, layers)
    }

    /// On a thread of the pool, so that the pass's loops share their work without a switch of
    /// threads each.
    fn enter<R: Send>(&self, multiplications: u64, pass: impl FnOnce() -> R + Send) -> R {
        if multiplications <= ALONE_PASS {
            return pass();
        }
        rayon::scope(|_| pass())
    }

    fn lay_out_sequences<'a>(
        &'a self,
        pages: &'a Pages,
        sequences: &'a Sequences<'a, Self>,
    ) -> Result<DecodeLayout<'a>> {
        Ok(DecodeLayout { sequences, pages })
    }

    fn begin_reading(&self, logits: Tensor, highest: &[bool]) -> Result<Vec<Logits>> {
        let values = read(&logits)?;
        let first = values.chunks(columns(&logits)).take(highest.len());
        Ok(first.map(|row| Logits::All(row.to_vec())).collect())
    }

    fn finish_reading(&self, reading: Vec<Logits>) -> Result<Vec<Logits>> {
        Ok(reading)
    }

    fn score_rows(&self, logits: &Tensor, tokens: &[u32], best: usize) -> Result<Vec<RowScore>> {
        let values = read(logits)?;
        let rows = values.par_chunks(columns(logits)).zip(tokens);
        Ok(rows
            .map(|(row, &token)| RowScore::of(row, token, best))
            .collect())
    }

    fn embed(&self, table: &Tensor, layout: &DecodeLayout<'_>) -> Result<Tensor> {
        self.gather(table, &layout.sequences.ids)
    }

    fn linear_by_rows(&self, _: Phase, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        by_rows::tensor_linear(&read(x)?, w, None)
    }

    fn frozen_linear_by_rows(
        &self,
        _: Phase,
        x: &Tensor,
        w: &Affine<Self>,
        plus: Option<&Tensor>,
    ) -> Result<Tensor> {
        let y = frozen::linear_by_rows(x, &w.weight, w.bias.as_ref())?;
        plus_matrix(y, plus)
    }

    fn normed_linear_by_rows(
        &self,
        _: Phase,
        (x, norm): (&Tensor, &Norm<Tensor>),
        w: &Affine<Self>,
        activation: Option<Activation>,
    ) -> Result<(Tensor, Tensor)> {
        let normed = self.layer_norm(x, norm)?;
        let y = frozen::linear_by_rows(&normed, &w.weight, w.bias.as_ref())?;
        if let Some(kind) = activation {
            self.activate(&y, kind)?;
        }
        Ok((normed, y))
    }

    fn has_lora(&self, layout: &DecodeLayout<'_>, target: Target) -> bool {
        layout.sequences.has_lora(target)
    }

    fn add_lora(
        &self,
        layout: &DecodeLayout<'_>,
        place: (usize, Target),
        x: &Tensor,
        y: &Tensor,
    ) -> Result<()> {
        let (columns, x) = (columns(x), read(x)?);
        let sequences = layout.sequences;
        let shares = sequences.spans.iter().zip(&sequences.adapters);
        let shares: Vec<(&Span, Option<&Adapter>)> =
            shares.map(|(span, adapter)| (span, *adapter)).collect();
        // Neighbours with the same adapter are one product.
        for shares in shares.chunk_by(|(_, a), (_, b)| are_same(*a, *b)) {
            let (Span { start, .. }, Some(adapter)) = shares[0] else {
                continue;
            };
            let rows: usize = shares.iter().map(|(span, _)| span.len).sum();
            let x = &x[start * columns..(start + rows) * columns];
            adapter.add(place, x, (y, *start))?;
        }
        Ok(())
    }

    fn activate(&self, x: &Tensor, kind: Activation) -> Result<()> {
        let columns = columns(x);
        write(x, |x| {
            rows::each(x, columns, |_, x| kernels::activate(x, kind))
        })
    }

    fn attend_pages(
        &self,
        normed: (&Tensor, &Norm<Tensor>),
        w: &Affine<Self>,
        heads: &Heads<Tensor>,
        (layout, layer): (&DecodeLayout<'_>, usize),
    ) -> Result<Tensor> {
        let phase = layout.sequences.phase;
        let (normed, qkv) = self.normed_linear_by_rows(phase, normed, w, None)?;
        self.add_lora(layout, (layer, Target::QueryKeyValue), &normed, &qkv)?;
        let (sequences, Pages { shape, pages }) = (layout.sequences, layout.pages);
        let mut pages = pages.lock();
        attention::paged(&qkv, heads, sequences, &mut pages, shape, layer)
    }
}

/// Whether two sequences have one adapter, or both the base alone.
fn are_same(a: Option<&Adapter>, b: Option<&Adapter>) -> bool {
    a.map(std::ptr::from_ref) == b.map(std::ptr::from_ref)
}
