//! Attention of a decoding pass over pages, and the rows that are appended to them.

use super::array::{Array, Element};
use super::context::Cuda;
use super::decode_layout::{DecodeLayout, Tables};
use super::decode_lora::factor_index;
use crate::error::Result;
use crate::ops::Heads;
use crate::target::Target;

/// Threads of a block of answers' attention, as in `pages.cu`.
const ANSWER_THREADS: usize = 256;

impl Cuda {
    /// Completes the joint product of answers by LoRA and rotation, appends their keys and values,
    /// and computes their attention, in one launch.
    pub(super) fn attend_answers(
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
    pub(super) fn append_to_pages(
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
    pub(super) fn attend_rows(
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

/// Returns the lanes per key, each with eight dimensions; 1 selects the kernel for any dimension.
fn lanes(dim: usize) -> usize {
    if dim.is_multiple_of(8) {
        (dim / 8).next_power_of_two().max(8)
    } else {
        1
    }
}
