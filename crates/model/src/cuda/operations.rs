//! The card's share of the operations: which kernel or product each one is.

use std::ops::Range;

use super::array::{Array, Element};
use super::fp8::Added;
use super::frozen::Frozen;
use super::heads::{Cache, Layout};
use super::{Cuda, Flat, Sum};
use crate::base::held::Held;
use crate::config::Activation;
use crate::device::CARD_LOGITS;
use crate::dropout::{Mask, Place};
use crate::error::Result;
use crate::ops::{Attended, Heads, Norm, Ops, Slot, Span};
use crate::optim::Coefficients;
use crate::weight::Rounding;

/// Blocks, and so partial sums, of a norm.
const NORM_BLOCKS: usize = 256;

impl Ops for Cuda {
    type Array = Array;
    type Weight = Frozen;
    type Cache = Cache;
    type Layout = Layout;
    type Flat = Flat;
    type Sum = Sum;

    const LOGITS_AT_ONCE: usize = CARD_LOGITS;

    fn scales_loss(&self) -> bool {
        self.element == Element::F16
    }

    /// In f32: what is uploaded are tables.
    fn upload(&self, values: &[f32], rows: usize, columns: usize) -> Result<Array> {
        self.upload_as(Element::F32, values, rows, columns)
    }

    fn adopt(&self, tensor: &Held) -> Result<Array> {
        self.adopt_held(tensor)
    }

    fn freeze(&self, weight: &Held) -> Result<Frozen> {
        self.freeze_held(weight)
    }

    fn loaded(&self) -> Result<()> {
        self.end_loading()
    }

    fn layout(&self, spans: &[Span], places: &[Place]) -> Result<Layout> {
        self.lay_out(spans, places)
    }

    fn download(&self, x: &Array) -> Result<Vec<f32>> {
        self.download_all(x)
    }

    fn cache(&self, layers: usize, _heads: usize) -> Cache {
        Cache::new(layers)
    }

    fn gather(&self, table: &Array, numbers: &[u32]) -> Result<Array> {
        let out = self.empty(numbers.len(), table.columns)?;
        let numbers = self.bring(numbers)?;
        let args = [
            (&out).into(),
            table.into(),
            numbers.address.into(),
            out.rows.into(),
            out.columns.into(),
        ];
        self.by_rows("gather", &[&out, table], out.rows, &args)?;
        Ok(out)
    }

    fn zeros(&self, rows: usize, columns: usize) -> Result<Array> {
        self.zeros_of(rows, columns)
    }

    fn scatter(&self, into: &Array, x: &Array, numbers: &[u32]) -> Result<()> {
        let numbers = self.bring(numbers)?;
        let args = [
            into.into(),
            x.into(),
            numbers.address.into(),
            x.rows.into(),
            x.columns.into(),
        ];
        self.by_rows("scatter", &[into, x], x.rows, &args)
    }

    /// A view, because nothing changes what it is a part of.
    fn rows(&self, x: &Array, range: Range<usize>) -> Result<Array> {
        Ok(x.part(range.start * x.columns, range.len(), x.columns))
    }

    fn product(&self, a: &Array, b: &Array) -> Result<Array> {
        if let Some(out) = self.shrink_across(a, b)? {
            return Ok(out);
        }
        let out = self.empty(a.rows, b.columns)?;
        self.product_into(&out, (a, b), None, 1.0)?;
        Ok(out)
    }

    fn linear(&self, x: &Array, w: &Array, bias: Option<&Array>) -> Result<Array> {
        let out = self.empty(x.rows, w.rows)?;
        self.linear_into(&out, (x, w), bias, None, 1.0)?;
        Ok(out)
    }

    fn frozen_linear(
        &self,
        x: &Array,
        w: &Frozen,
        bias: Option<&Array>,
        plus: Option<&Array>,
    ) -> Result<Array> {
        if let Frozen::Fp8(w) = w {
            return self.fp8_linear(x, w, Added { bias, plus });
        }
        let w = self.dequantized(w, Rounding::None)?;
        let out = self.empty(x.rows, w.rows)?;
        self.linear_into(&out, (x, &w), bias, plus, 1.0)?;
        Ok(out)
    }

    fn frozen_product(&self, dy: &Array, w: &Frozen) -> Result<Array> {
        match w {
            Frozen::Fp8(w) => self.fp8_product(dy, w),
            w => self.product(dy, &self.dequantized(w, Rounding::AsQuantized)?),
        }
    }

    fn activated_linear(
        &self,
        x: Array,
        kind: Activation,
        (w, bias): (&Frozen, Option<&Array>),
        plus: Option<&Array>,
    ) -> Result<(Array, Array)> {
        if let Frozen::Fp8(w) = w
            && let Some(out) = self.fp8_activated((&x, kind), w, Added { bias, plus })?
        {
            return Ok((out, x));
        }
        let (activated, kept) = self.activate_keeping(x, kind)?;
        Ok((self.frozen_linear(&activated, w, bias, plus)?, kept))
    }

    fn normed_linear(
        &self,
        x: &Array,
        norm: &Norm<Array>,
        (w, bias): (&Frozen, Option<&Array>),
    ) -> Result<(Array, Array)> {
        if let Frozen::Fp8(w) = w
            && let Some(both) = self.fp8_normed((x, norm), w, bias)?
        {
            return Ok(both);
        }
        let normed = self.layer_norm(x, norm)?;
        let y = self.frozen_linear(&normed, w, bias, None)?;
        Ok((normed, y))
    }

    fn norm_backward_product(
        &self,
        dx: &Array,
        dy: &Array,
        (x, norm): (&Array, &Norm<Array>),
        w: &Frozen,
    ) -> Result<Array> {
        if let Frozen::Fp8(w) = w
            && let Some(out) = self.fp8_normed_back((dx, dy), (x, norm), w)?
        {
            return Ok(out);
        }
        self.layer_norm_backward(dx, dy, x, norm)?;
        self.frozen_product(dx, w)
    }

    fn sloped_product(
        &self,
        dy: &Array,
        kept: &Array,
        kind: Activation,
        w: &Frozen,
    ) -> Result<Array> {
        if let Frozen::Fp8(w) = w
            && let Some(out) = self.fp8_sloped(dy, (kept, kind), w)?
        {
            return Ok(out);
        }
        self.activate_backward(dy, kept, kind)?;
        self.frozen_product(dy, w)
    }

    fn shrink(
        &self,
        x: &Array,
        a: &Array,
        mask: Option<(&Mask, &Layout)>,
    ) -> Result<(Array, Array)> {
        self.shrink_along(x, a, mask)
    }

    fn add_linear(&self, y: &Array, first: usize, x: &Array, w: &Array, scale: f32) -> Result<()> {
        let y = y.part(first * y.columns, x.rows, y.columns);
        self.expand_along(&y, x, w, scale)
    }

    fn add_product(
        &self,
        y: &Array,
        a: &Array,
        b: &Array,
        scale: f32,
        mask: Option<(&Mask, &Layout)>,
    ) -> Result<()> {
        self.expand_across(y, (a, b), scale, mask)
    }

    fn add_gradient(
        &self,
        (out, range): (&mut Flat, Range<usize>),
        a: &Array,
        b: &Array,
        scale: f32,
    ) -> Result<()> {
        self.sum_gradient(out.0.address + 4 * range.start as u64, a, b, scale)
    }

    fn layer_norm(&self, x: &Array, norm: &Norm<Array>) -> Result<Array> {
        let out = self.empty(x.rows, x.columns)?;
        let args = [
            (&out).into(),
            x.into(),
            (&norm.weight).into(),
            (&norm.bias).into(),
            x.columns.into(),
            norm.eps.into(),
        ];
        let arrays = [&out, x, &norm.weight, &norm.bias];
        self.by_blocks("layer_norm", &arrays, (x.rows, 128), &args)?;
        Ok(out)
    }

    fn layer_norm_backward(
        &self,
        dx: &Array,
        dy: &Array,
        x: &Array,
        norm: &Norm<Array>,
    ) -> Result<()> {
        let args = [
            dx.into(),
            dy.into(),
            x.into(),
            (&norm.weight).into(),
            x.columns.into(),
            norm.eps.into(),
        ];
        let arrays = [dx, dy, x, &norm.weight];
        self.by_blocks("layer_norm_backward", &arrays, (x.rows, 128), &args)
    }

    fn activate(&self, x: &Array, kind: Activation) -> Result<()> {
        let args = [x.into(), x.into(), number(kind).into(), x.len().into()];
        self.by_values("activate", &[x], x.len(), &args)
    }

    /// Keeps the input: its derivative is made again, which costs less than to write and read it.
    fn activate_keeping(&self, x: Array, kind: Activation) -> Result<(Array, Array)> {
        let out = self.empty(x.rows, x.columns)?;
        let args = [
            (&out).into(),
            (&x).into(),
            number(kind).into(),
            x.len().into(),
        ];
        self.by_values("activate", &[&out, &x], x.len(), &args)?;
        Ok((out, x))
    }

    fn activate_backward(&self, dy: &Array, x: &Array, kind: Activation) -> Result<()> {
        let args = [dy.into(), x.into(), number(kind).into(), x.len().into()];
        self.by_values("activate_backward", &[dy, x], x.len(), &args)
    }

    /// Turns queries and keys in place, and keeps them so.
    fn attention(
        &self,
        qkv: Array,
        heads: &Heads<Array>,
        layout: &Layout,
    ) -> Result<Attended<Array>> {
        self.attend(qkv, heads, layout)
    }

    fn attention_cached(
        &self,
        qkv: &Array,
        heads: &Heads<Array>,
        layout: &Layout,
        layer: usize,
        caches: &mut [&mut Cache],
    ) -> Result<Array> {
        self.attend_over(qkv, heads, layout, layer, caches)
    }

    fn attention_backward(
        &self,
        d_out: &Array,
        attended: &Attended<Array>,
        heads: &Heads<Array>,
        layout: &Layout,
    ) -> Result<Array> {
        self.attend_back(d_out, attended, heads, layout)
    }

    fn sum(&self) -> Result<Sum> {
        Ok(Sum(self.bring(&[0.0])?))
    }

    fn read_sum(&self, sum: &Sum) -> Result<f64> {
        Ok(self.fetch(&sum.0)?[0])
    }

    fn cross_entropy(
        &self,
        sum: &mut Sum,
        logits: &Array,
        targets: &[u32],
        factor: f32,
    ) -> Result<()> {
        let losses = self.room::<f32>(targets.len())?;
        let brought = self.bring(targets)?;
        let args = [
            logits.into(),
            losses.address.into(),
            brought.address.into(),
            logits.columns.into(),
            factor.into(),
        ];
        self.by_blocks("cross_entropy", &[logits], (targets.len(), 512), &args)?;
        let args = [
            sum.0.address.into(),
            losses.address.into(),
            targets.len().into(),
        ];
        self.launch("add_losses", (1, 1), 1024, &args)
    }

    fn flat(&self, values: &[f32]) -> Result<Flat> {
        Ok(Flat(self.bring(values)?))
    }

    fn read_flat(&self, flat: &Flat) -> Result<Vec<f32>> {
        self.fetch(&flat.0)
    }

    fn clear(&self, flat: &mut Flat) -> Result<()> {
        self.zero(&mut flat.0)
    }

    fn scale_flat(&self, flat: &mut Flat, factor: f32) -> Result<()> {
        let args = [flat.0.address.into(), factor.into(), flat.0.len().into()];
        self.launch_values("scale_flat", flat.0.len(), &args)
    }

    fn norm(&self, flat: &Flat) -> Result<f64> {
        let parts = self.room::<f64>(NORM_BLOCKS)?;
        let args = [
            parts.address.into(),
            flat.0.address.into(),
            flat.0.len().into(),
        ];
        self.launch("squares", (NORM_BLOCKS, 1), 256, &args)?;
        Ok(self.fetch(&parts)?.iter().sum::<f64>().sqrt())
    }

    fn matrices(&self, flat: &Flat, slots: &[Slot]) -> Result<Vec<Array>> {
        let all = self.empty(1, flat.0.len())?;
        let args = [(&all).into(), flat.0.address.into(), all.len().into()];
        let kernel = self.kernel("from_f32", all.element, None);
        self.launch_values(&kernel, all.len(), &args)?;
        Ok(slots
            .iter()
            .map(|slot| all.part(slot.range.start, slot.rows, slot.columns))
            .collect())
    }

    fn adamw(
        &self,
        values: &mut Flat,
        gradients: &Flat,
        (first, second): (&mut Flat, &mut Flat),
        coefficients: &Coefficients,
    ) -> Result<()> {
        let c = coefficients;
        let args = [
            values.0.address.into(),
            gradients.0.address.into(),
            first.0.address.into(),
            second.0.address.into(),
            c.keep.into(),
            c.rate.into(),
            c.root.into(),
            c.eps.into(),
            c.first[0].into(),
            c.first[1].into(),
            c.second[0].into(),
            c.second[1].into(),
            values.0.len().into(),
        ];
        self.launch_values("adamw", values.0.len(), &args)
    }
}

impl Cuda {
    /// `y += x`
    pub(super) fn add(&self, y: &Array, x: &Array) -> Result<()> {
        let args = [y.into(), x.into(), x.len().into()];
        self.by_values("add", &[y, x], x.len(), &args)
    }
}

/// The activation's number in the kernels.
pub(super) fn number(kind: Activation) -> usize {
    match kind {
        Activation::Gelu => 0,
        Activation::GeluTanh => 1,
        Activation::Relu => 2,
        Activation::Silu => 3,
    }
}
