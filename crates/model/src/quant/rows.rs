//! What the quantized forms share: their values row by row, and the checks of their parts.

use rayon::prelude::*;

use crate::error::{Error, Result};

/// The rounding of a dequantized value before it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// No rounding, as in a forward.
    None,
    /// To the type that was quantized, as in bitsandbytes' dequantization and backward. Only NF4
    /// has values to round.
    AsQuantized,
}

/// A matrix in another form than f32, which gives its values row by row.
pub(crate) trait Rows: Sync {
    /// Rows and columns.
    fn size(&self) -> [usize; 2];
    /// Writes a row's values.
    fn row_into(&self, row: usize, out: &mut [f32], rounding: Rounding);

    /// All values, computed on all cores.
    fn all(&self, rounding: Rounding) -> Vec<f32> {
        let [rows, columns] = self.size();
        let mut values = vec![0.0; rows * columns];
        let each = values.par_chunks_exact_mut(columns.max(1)).enumerate();
        each.with_min_len((1 << 13) / columns.max(1) + 1)
            .for_each(|(row, out)| self.row_into(row, out, rounding));
        values
    }
}

/// The largest magnitude; 0 without values.
pub(super) fn absmax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

/// Checks that a part of a quantized matrix has as many values as its shape needs.
pub(super) fn check_len(part: &str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        Ok(())
    } else {
        Err(Error::format(
            part,
            format!("has {got} values, expected {expected}"),
        ))
    }
}
