//! The GPU's arrays, products and norms: the kernels and products that each one launches.

use super::array::{Array, Element, Flat};
use super::context::Cuda;
use super::fp8::Added;
use super::frozen::Frozen;
use super::layout::Layout;
use crate::dropout::{Mask, MaskRow};
use crate::error::Result;
use crate::ops::{Affine, Norm, Ops, Slot, Span};
use crate::quant::rows::Rounding;
use crate::stored::StoredForm;

impl Ops for Cuda {
    type Array = Array;
    type Weight = Frozen;
    type Layout = Layout;
    type Flat = Flat;

    /// In f32, because only tables are uploaded.
    fn upload(&self, values: &[f32], rows: usize, columns: usize) -> Result<Array> {
        self.upload_as(Element::F32, values, rows, columns)
    }

    fn adopt(&self, tensor: &StoredForm) -> Result<Array> {
        self.adopt_held(tensor)
    }

    fn freeze(&self, weight: &StoredForm) -> Result<Frozen> {
        self.freeze_held(weight)
    }

    fn loaded(&self) -> Result<()> {
        self.end_loading()
    }

    fn layout(&self, spans: &[Span], mask_rows: &[MaskRow]) -> Result<Layout> {
        self.lay_out(spans, mask_rows)
    }

    fn download(&self, x: &Array) -> Result<Vec<f32>> {
        self.download_all(x)
    }

    fn gather(&self, table: &Array, numbers: &[u32]) -> Result<Array> {
        let out = self.empty(numbers.len(), table.columns)?;
        let on_gpu = self.bring(numbers)?;
        let args = [
            (&out).into(),
            table.into(),
            on_gpu.address.into(),
            out.rows.into(),
            out.columns.into(),
        ];
        self.by_rows("gather", &[&out, table], out.rows, &args)?;
        Ok(out)
    }

    fn linear(&self, x: &Array, w: &Array) -> Result<Array> {
        self.planned_linear(x, w, None)
    }

    fn frozen_linear(&self, x: &Array, w: &Affine<Self>, plus: Option<&Array>) -> Result<Array> {
        self.planned_frozen_linear(x, w, plus, None)
    }

    fn normed_linear(
        &self,
        x: &Array,
        norm: &Norm<Array>,
        w: &Affine<Self>,
        plus: Option<&Array>,
    ) -> Result<(Array, Array)> {
        if let Frozen::Fp8(codes) = &w.weight
            && plus.is_none()
            && let Some(both) = self.fp8_normed((x, norm), codes, w.bias.as_ref(), None)?
        {
            return Ok(both);
        }
        let normed = self.layer_norm(x, norm)?;
        let y = self.frozen_linear(&normed, w, plus)?;
        Ok((normed, y))
    }

    fn lora_a(
        &self,
        x: &Array,
        a: &Array,
        mask: Option<(&Mask, &Layout)>,
    ) -> Result<(Array, Array)> {
        self.lora_a_forward(x, a, mask, None)
    }

    fn add_lora_b(&self, y: &Array, first: usize, x: &Array, b: &Array, scale: f32) -> Result<()> {
        let rows = y.part(first * y.columns, x.rows, y.columns);
        self.lora_b_into(&rows, (x, b), scale, None)
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

    fn flat(&self, values: &[f32]) -> Result<Flat> {
        Ok(Flat(self.bring(values)?))
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
}

impl Cuda {
    /// [`Ops::linear`] by the algorithm for `planned` rows.
    pub(super) fn planned_linear(
        &self,
        x: &Array,
        w: &Array,
        planned: Option<usize>,
    ) -> Result<Array> {
        let out = self.empty(x.rows, w.rows)?;
        self.linear_into(&out, (x, w), None, None, 1.0, planned)?;
        Ok(out)
    }

    /// [`Ops::frozen_linear`] by the algorithm for `planned` rows.
    pub(super) fn planned_frozen_linear(
        &self,
        x: &Array,
        w: &Affine<Self>,
        plus: Option<&Array>,
        planned: Option<usize>,
    ) -> Result<Array> {
        let bias = w.bias.as_ref();
        if let Frozen::Fp8(codes) = &w.weight {
            return self.fp8_linear(x, codes, Added { bias, plus }, planned);
        }
        let dense = self.dequantized(&w.weight, Rounding::None)?;
        let out = self.empty(x.rows, dense.rows)?;
        self.linear_into(&out, (x, &dense), bias, plus, 1.0, planned)?;
        Ok(out)
    }
}
