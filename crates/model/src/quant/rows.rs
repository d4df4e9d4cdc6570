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
    /// Writes the values of a row from a column on.
    fn part_into(&self, first: (usize, usize), out: &mut [f32], rounding: Rounding);

    /// All values, computed on all cores.
    fn all(&self, rounding: Rounding) -> Vec<f32> {
        let [rows, columns] = self.size();
        let mut values = vec![0.0; rows * columns];
        let each = values.par_chunks_exact_mut(columns.max(1)).enumerate();
        each.with_min_len((1 << 13) / columns.max(1) + 1)
            .for_each(|(row, out)| self.part_into((row, 0), out, rounding));
        values
    }
}

/// The largest magnitude; 0 without values.
#[inline(always)]
pub(super) fn absmax(values: &[f32]) -> f32 {
    // In lanes, which are vectorized; the order does not matter.
    let (chunks, rest) = values.as_chunks::<32>();
    let mut most = [0.0_f32; 32];
    for chunk in chunks {
        for (most, value) in most.iter_mut().zip(chunk) {
            *most = most.max(value.abs());
        }
    }
    let rest = rest.iter().map(|value| value.abs());
    most.into_iter().chain(rest).fold(0.0, f32::max)
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
