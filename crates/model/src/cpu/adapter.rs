//! An adapter on the CPU: its factors, and LoRA's second one as decoding reads it.

use candle_core::Tensor;

use super::storage::{columns, read, write};
use super::{by_rows, kernels, rows};
use crate::error::Result;
use crate::ops::factors::Factors;
use crate::target::Target;

/// An adapter that passes of decoding read.
pub(crate) struct Adapter {
    factors: Factors<Tensor>,
    /// For each layer and target that has factors its B, transposed: (rank, outputs).
    transposed: Vec<[Option<Tensor>; 4]>,
}

impl AsRef<Factors<Tensor>> for Adapter {
    fn as_ref(&self) -> &Factors<Tensor> {
        &self.factors
    }
}

impl Adapter {
    pub(super) fn new(factors: Factors<Tensor>, layers: usize) -> Result<Self> {
        let mut transposed = vec![[const { None }; 4]; layers];
        for (layer, transposed) in transposed.iter_mut().enumerate() {
            for target in Target::ALL {
                if let Some(factor) = factors.get(layer, target) {
                    transposed[target.index()] = Some(factor.b.t()?.contiguous()?);
                }
            }
        }
        Ok(Self {
            factors,
            transposed,
        })
    }

    /// Adds its product of `x`, rows of activations, to `y` from the row `first` on. No row depends
    /// on another, and the order of sums depends on the rank and the count of inputs alone.
    pub(super) fn add(
        &self,
        (layer, target): (usize, Target),
        x: &[f32],
        (y, first): (&Tensor, usize),
    ) -> Result<()> {
        let factor = self.factors.get(layer, target);
        let (Some(factor), Some(b)) = (factor, &self.transposed[layer][target.index()]) else {
            return Ok(());
        };
        let shrunk = by_rows::tensor_linear(x, &factor.a, None)?;
        let (outputs, rank) = (columns(y), columns(&shrunk));
        let (shrunk, b) = (read(&shrunk)?, read(b)?);
        write(y, |y| {
            let y = &mut y[first * outputs..][..shrunk.len() / rank * outputs];
            rows::each(y, outputs, |row, y| {
                kernels::add_expanded(y, &shrunk[row * rank..][..rank], &b, factor.scale);
            });
        })
    }
}
