//! Products by frozen weights. Weights in f32 are used as they are, others are first converted to
//! f32 in a scratch buffer, and 8-bit integers are multiplied by the codes of the activations.

use candle_core::Tensor;

use super::products::{self, FEW_ROWS};
use super::storage::{matrix, read};
use super::{kernels, rows};
use crate::error::Result;
use crate::float::Float;
use crate::quant::Int8;
use crate::quant::int8::{Activations, HIGHEST};
use crate::quant::rows::{Rounding, Rows};
use crate::weight::Weight;

/// Rows of activations whose codes fit into a core's cache while it reads the weights.
const ROWS_IN_CACHE: usize = 32;

/// The rows whose outliers leave a column of a product by 8-bit integers to floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outliers {
    /// An outlier in any row takes the column out of all rows, as in bitsandbytes.
    OfAllRows,
    /// Each row has its own outlier columns, so that no row depends on another.
    OfEachRow,
}

/// `x wᵀ + bias`
pub(super) fn linear(
    x: &Tensor,
    w: &Weight,
    bias: Option<&Tensor>,
    outliers: Outliers,
) -> Result<Tensor> {
    if let Weight::Int8(w) = w {
        let bias = bias.map(read).transpose()?;
        let (x, bias) = (read(x)?, bias.as_deref());
        let y = match outliers {
            Outliers::OfAllRows => w.linear(&x, bias),
            Outliers::OfEachRow => w.linear_by_rows(&x, bias),
        };
        return matrix(y, w.shape()[0]);
    }
    let w = match w.rows() {
        Ok(rows) => rows,
        Err(tensor) => return products::linear(x, tensor, bias),
    };
    let [outputs, inputs] = w.size();
    if x.dims()[0] <= FEW_ROWS {
        let bias = bias.map(read).transpose()?;
        return matrix(few_rows(&read(x)?, w, bias.as_deref()), outputs);
    }
    products::linear(x, &matrix(w.all(Rounding::None), inputs)?, bias)
}

/// `dy w`
pub(super) fn product(dy: &Tensor, w: &Weight) -> Result<Tensor> {
    Ok(dy.matmul(&w.dequantized()?)?)
}

/// [`rows::few_rows`] with one row of `w` in f32 at a time.
fn few_rows(x: &[f32], w: &dyn Rows, bias: Option<&[f32]>) -> Vec<f32> {
    let [outputs, inputs] = w.size();
    let count = x.len() / inputs;
    rows::by_columns((count, outputs), inputs, bias, |first, columns| {
        let mut scratch = vec![0.0; inputs];
        for (output, out) in (first..).zip(columns.chunks_exact_mut(count)) {
            w.row_into(output, &mut scratch, Rounding::None);
            kernels::run(kernels::Dots {
                out,
                x,
                w: &scratch,
                inputs,
            });
        }
    })
}

impl Int8 {
    /// `x wᵀ + bias` by LLM.int8(): integer products of codes, and the outlier columns of `x` in
    /// f32. An outlier in any row makes the column an outlier of all rows.
    ///
    /// Rounds through fp16 where bitsandbytes does for inputs in f32, so that the activations of
    /// later layers get the same codes.
    #[must_use]
    pub fn linear(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let [outputs, inputs] = self.shape();
        let Activations {
            quantized,
            outliers,
        } = Activations::quantize(x, inputs);
        let count = x.len() / inputs;
        let kept = columns_of(x, inputs, &outliers);
        rows::by_columns((count, outputs), inputs, None, |first, columns| {
            self.products_of_codes(&quantized, bias, first, columns);
            if !outliers.is_empty() {
                for (output, out) in (first..).zip(columns.chunks_exact_mut(count)) {
                    self.add_outliers(output, out, &kept, &outliers);
                }
            }
        })
    }

    /// [`Int8::linear`] for each row separately, so that a row's result does not depend on the
    /// others.
    pub(super) fn linear_by_rows(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let [outputs, inputs] = self.shape();
        let count = x.len() / inputs;
        let (quantized, outliers) = Activations::quantize_by_rows(x, inputs);
        let kept: Vec<Vec<f32>> = x
            .chunks_exact(inputs)
            .zip(&outliers)
            .map(|(row, outliers)| columns_of(row, inputs, outliers))
            .collect();
        rows::by_columns((count, outputs), inputs, None, |first, columns| {
            self.products_of_codes(&quantized, bias, first, columns);
            for (output, out) in (first..).zip(columns.chunks_exact_mut(count)) {
                for ((out, kept), outliers) in out.chunks_mut(1).zip(&kept).zip(&outliers) {
                    if !outliers.is_empty() {
                        self.add_outliers(output, out, kept, outliers);
                    }
                }
            }
        })
    }

    /// The products of codes, scaled, plus the bias: all rows of each output from `first` on.
    fn products_of_codes(
        &self,
        quantized: &Self,
        bias: Option<&[f32]>,
        first: usize,
        columns: &mut [f32],
    ) {
        let count = quantized.shape()[0];
        for block in (0..count).step_by(ROWS_IN_CACHE) {
            for (output, out) in (first..).zip(columns.chunks_exact_mut(count)) {
                let bias = bias.map_or(0.0, |bias| bias[output]);
                for (row, out) in (block..).zip(out[block..].iter_mut().take(ROWS_IN_CACHE)) {
                    let sum = kernels::dot_codes(quantized.row(row), self.row(output)) as f32;
                    let scaled = sum * quantized.absmax()[row] * self.absmax()[output];
                    *out = through_fp16(through_fp16(scaled / (HIGHEST * HIGHEST)) + bias);
                }
            }
        }
    }

    /// Adds the products of one output's weights with the outlier values, `kept`, to every row.
    fn add_outliers(&self, output: usize, out: &mut [f32], kept: &[f32], outliers: &[usize]) {
        let (codes, unit) = (self.row(output), self.unit(output));
        let weights = outliers
            .iter()
            .map(|&column| f32::from(codes[column]) * unit);
        let weights: Vec<f32> = weights.collect();
        for (out, x) in out.iter_mut().zip(kept.chunks_exact(outliers.len())) {
            *out += x.iter().zip(&weights).map(|(x, w)| x * w).sum::<f32>();
        }
    }
}

/// The values of some columns: (rows, columns).
fn columns_of(x: &[f32], inputs: usize, columns: &[usize]) -> Vec<f32> {
    x.chunks_exact(inputs)
        .flat_map(|row| columns.iter().map(|&column| row[column]))
        .collect()
}

/// The nearest fp16, or the value itself where that would be infinite.
fn through_fp16(value: f32) -> f32 {
    let rounded = Float::Fp16.round(value);
    if rounded.is_finite() { rounded } else { value }
}
