//! A matrix of 16-bit floats, mapped from its file or rounded.

use crate::float::Float;
use crate::mapped::Bytes;
use crate::quant::rows::{Rounding, Rows};
use crate::simd;

/// A matrix in fp16 or bf16.
#[derive(Clone, Debug)]
pub struct Halves {
    shape: [usize; 2],
    float: Float,
    /// Little-endian, row by row.
    bytes: Bytes,
}

impl Halves {
    /// Rounds values to a 16-bit type; none may be beyond it.
    #[must_use]
    pub fn round(values: &[f32], columns: usize, float: Float) -> Self {
        let rows = values.len().checked_div(columns).unwrap_or(0);
        Self::shared([rows, columns], float, Bytes::of(float.bytes(values)))
    }

    /// The values in these bytes, which must be finite and as many as the shape has.
    pub(crate) fn shared(shape: [usize; 2], float: Float, bytes: Bytes) -> Self {
        Self {
            shape,
            float,
            bytes,
        }
    }

    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The type.
    #[must_use]
    pub fn float(&self) -> Float {
        self.float
    }

    /// The values' bytes, little-endian.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Rows for Halves {
    fn size(&self) -> [usize; 2] {
        self.shape
    }

    fn part_into(&self, (row, column): (usize, usize), out: &mut [f32], _: Rounding) {
        let first = row * self.shape[1] + column;
        let bytes = &self.bytes[2 * first..][..2 * out.len()];
        simd::run(
            #[inline(always)]
            || self.float.widen(bytes, out),
        );
    }
}
