//! LoRA of a decoding pass, in which each row has its own adapter.

use super::array::{Array, Element};
use super::context::Cuda;
use super::decode_layout::{DecodeLayout, planned_rows};
use super::few_rows::{Beside, MOST_BESIDE};
use crate::error::Result;
use crate::gpu_limits::GPU_LARGEST_RANK;
use crate::ops::decoding::{Decode, Phase, Sequences};
use crate::ops::factors::Factors;
use crate::ops::{Affine, Norm, Ops};
use crate::target::Target;

impl Cuda {
    /// Adds each sequence's LoRA, one sequence after the other.
    pub(super) fn add_lora_by_sequences(
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
    pub(super) fn add_lora_by_rows(
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
    pub(super) fn joint_product(
        &self,
        (x, norm): (&Array, &Norm<Array>),
        w: &Affine<Self>,
        layout: &DecodeLayout<'_>,
        rank: usize,
        place: (usize, Target),
    ) -> Result<(Array, Option<Array>)> {
        let has_lora = self.has_lora(layout, place.1);
        if has_lora && self.can_multiply_few() && x.rows <= MOST_BESIDE {
            let normed = self.layer_norm(x, norm)?;
            let shrunk = self.empty_of(Element::F32, layout.tables.rows, GPU_LARGEST_RANK)?;
            let beside = Beside {
                shrunk: &shrunk,
                adapters: layout.tables.adapters,
                factor: factor_index(place),
                // A recorded pass serves all ranks up to the next multiple of 8.
                rank: rank.next_multiple_of(8),
            };
            let bias = w.bias.as_ref();
            if let Some(qkv) = self.few_rows_linear_beside(&normed, &w.weight, bias, &beside)? {
                return Ok((qkv, Some(shrunk)));
            }
        }
        let (normed, qkv) = self.normed_linear_by_rows(Phase::Decode, (x, norm), w, None)?;
        let shrunk = match has_lora {
            true => Some(self.shrink_rows(layout, rank, place, &normed)?),
            false => None,
        };
        Ok((qkv, shrunk))
    }
}

/// The place of a layer's factors of a target in an adapter's table.
pub(super) fn factor_index((layer, target): (usize, Target)) -> usize {
    layer * Target::ALL.len() + target.index()
}
