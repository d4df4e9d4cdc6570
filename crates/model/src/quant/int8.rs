//! LLM.int8() (arXiv:2208.07339): rows of 8-bit codes with a scale for each row. Columns of
//! activations with large values are multiplied in floats instead.

use super::rows::{Rounding, Rows, absmax, check_len};
use crate::error::Result;
use crate::float::Float;

/// A column of activations with a magnitude from here on is an outlier.
pub const THRESHOLD: f32 = 6.0;

/// The code of a row's largest magnitude.
pub(crate) const HIGHEST: f32 = 127.0;

/// A matrix of codes: `code × absmax of its row / 127`.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8 {
    columns: usize,
    codes: Vec<i8>,
    absmax: Vec<f32>,
}

impl Int8 {
    /// Quantizes a weight through fp16; all values must be in its range.
    #[must_use]
    pub fn quantize(values: &[f32], columns: usize) -> Self {
        let mut quantized = Self {
            columns,
            codes: Vec::with_capacity(values.len()),
            absmax: Vec::new(),
        };
        for row in values.chunks(columns.max(1)) {
            let row = through_fp16(row);
            let largest = absmax(&row);
            let factor = HIGHEST / largest;
            quantized
                .codes
                .extend(row.iter().map(|value| code(value * factor)));
            quantized.absmax.push(largest);
        }
        quantized
    }

    /// The matrix of parts from a file.
    ///
    /// # Errors
    /// Codes or scales are too many or too few for the shape.
    pub fn from_parts(shape: [usize; 2], codes: Vec<i8>, absmax: Vec<f32>) -> Result<Self> {
        let [rows, columns] = shape;
        check_len("codes", codes.len(), rows * columns)?;
        check_len("SCB", absmax.len(), rows)?;
        Ok(Self {
            columns,
            codes,
            absmax,
        })
    }

    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        [self.absmax.len(), self.columns]
    }

    /// The codes, row by row.
    #[must_use]
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// The largest magnitude of each row.
    #[must_use]
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// The size of codes and scales in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.absmax.len()
    }

    /// The values, as products with outliers and backward use them.
    #[must_use]
    pub fn dequantized(&self) -> Vec<f32> {
        self.all(Rounding::AsQuantized)
    }

    /// One row's codes.
    pub(crate) fn row(&self, row: usize) -> &[i8] {
        &self.codes[row * self.columns..][..self.columns]
    }

    /// The value of a row's code 1.
    pub(crate) fn unit(&self, row: usize) -> f32 {
        self.absmax[row] * (1.0 / HIGHEST)
    }
}

impl Rows for Int8 {
    fn size(&self) -> [usize; 2] {
        self.shape()
    }

    fn part_into(&self, (row, column): (usize, usize), out: &mut [f32], _: Rounding) {
        let unit = self.unit(row);
        for (value, &code) in out.iter_mut().zip(&self.row(row)[column..]) {
            *value = f32::from(code) * unit;
        }
    }
}

/// Rows of activations in codes.
pub(crate) struct Activations {
    /// (rows, columns), as wide as a product's instructions want them; 0 in outlier columns.
    pub(crate) codes: Vec<i16>,
    /// The largest magnitude of each row, outliers aside.
    pub(crate) absmax: Vec<f32>,
    /// The outlier columns of all rows.
    pub(crate) outliers: Vec<usize>,
}

impl Activations {
    /// Quantizes rows through fp16. A row's scale ignores outlier values, but not the other values
    /// in outlier columns.
    #[inline(always)]
    pub(crate) fn quantize(x: &[f32], columns: usize) -> Self {
        let mut kept = through_fp16(x);
        let mut flags = vec![false; columns];
        for row in kept.chunks_exact_mut(columns) {
            for (flag, value) in flags.iter_mut().zip(row) {
                let is_outlier = value.abs() >= THRESHOLD;
                *flag |= is_outlier;
                *value = if is_outlier { 0.0 } else { *value };
            }
        }
        let outliers: Vec<usize> = (0..columns).filter(|&column| flags[column]).collect();
        let (mut codes, mut scales) = (Vec::with_capacity(x.len()), Vec::new());
        for row in kept.chunks_exact(columns) {
            let largest = absmax(row);
            let factor = HIGHEST / largest;
            let start = codes.len();
            codes.extend(row.iter().map(|value| i16::from(code(value * factor))));
            outliers.iter().for_each(|column| codes[start + column] = 0);
            scales.push(largest);
        }
        Self {
            codes,
            absmax: scales,
            outliers,
        }
    }
}

#[inline(always)]
fn through_fp16(values: &[f32]) -> Vec<f32> {
    values
        .iter()
        .map(|&value| Float::Fp16.round(value))
        .collect()
}

/// The nearest code; ties go to the even one. NaN, as in a row of zeros, becomes 0.
#[allow(clippy::cast_possible_truncation)]
#[inline(always)]
fn code(scaled: f32) -> i8 {
    scaled.round_ties_even() as i8
}
