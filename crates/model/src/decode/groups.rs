//! The rows of a decoding pass by adapter.

use std::ops::Range;

use crate::error::Result;
use crate::network::factors::Factors;
use crate::ops::Ops;
use crate::target::Target;

/// Rows that run with one adapter.
pub(crate) struct Group<'a, O: Ops> {
    pub(crate) rows: Range<usize>,
    pub(crate) factors: &'a Factors<O::Array>,
}

/// The groups of a pass; rows that are in none run with the base alone.
pub(crate) struct Groups<'a, O: Ops> {
    groups: Vec<Group<'a, O>>,
    /// Rows of the pass.
    rows: usize,
}

impl<'a, O: Ops> Groups<'a, O> {
    pub(crate) fn new(groups: Vec<Group<'a, O>>, rows: usize) -> Self {
        Self { groups, rows }
    }

    /// Adds to the product `y` of `x` each group's LoRA.
    pub(super) fn add_lora(
        &self,
        ops: &O,
        (layer, target): (usize, Target),
        x: &O::Array,
        y: &O::Array,
    ) -> Result<()> {
        for group in &self.groups {
            let Some(factor) = group.factors.get(layer, target) else {
                continue;
            };
            let input = if group.rows.len() == self.rows {
                x.clone()
            } else {
                ops.rows(x, group.rows.clone())?
            };
            let (_, shrunk) = ops.lora_a(&input, &factor.a, None)?;
            ops.add_lora_b(y, group.rows.start, &shrunk, &factor.b, factor.scale)?;
        }
        Ok(())
    }
}
