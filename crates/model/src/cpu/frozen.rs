//! Products by frozen weights. Weights in f32 are used as they are, others are first converted to
//! f32 in a scratch buffer, and 8-bit integers are multiplied by the codes of the activations.

use candle_core::Tensor;

use super::by_rows::{self, Weights};
use super::kernels::tiles::{self, Part};
use super::products::{self, FEW_ROWS};
use super::storage::{matrix, read};
use super::{kernels, rows};
use crate::error::Result;
use crate::float::Float;
use crate::quant::Int8;
use crate::quant::int8::{Activations, HIGHEST};
use crate::quant::rows::{Rounding, Rows};
use crate::weight::Weight;

/// `x wᵀ + bias` of training: any row may change another.
pub(super) fn linear(x: &Tensor, w: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    if let Weight::Int8(w) = w {
        let bias = bias.map(read).transpose()?;
        return matrix(w.linear(&read(x)?, bias.as_deref()), w.shape()[0]);
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

/// `x wᵀ + bias` of decoding: no row depends on another.
pub(super) fn linear_by_rows(x: &Tensor, w: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    let bias = bias.map(read).transpose()?;
    let (x, bias) = (read(x)?, bias.as_deref());
    let y = match (w, w.rows()) {
        (Weight::Int8(w), _) => w.linear_by_rows(&x, bias),
        (_, Ok(packed)) => by_rows::linear(&x, Weights::Packed(packed), bias, packed.size()),
        (_, Err(tensor)) => return by_rows::tensor_linear(&x, tensor, bias),
    };
    matrix(y, w.shape()[0])
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
            w.part_into((output, 0), &mut scratch, Rounding::None);
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
        let activations = Activations::quantize(x, inputs);
        let outliers = &activations.outliers;
        let count = x.len() / inputs;
        let kept = columns_of(x, inputs, outliers);
        rows::by_columns((count, outputs), inputs, None, |first, columns| {
            self.products_of_codes(&activations, bias, first, columns);
            if !outliers.is_empty() {
                for (output, out) in (first..).zip(columns.chunks_exact_mut(count)) {
                    self.add_outliers(output, out, &kept, outliers);
                }
            }
        })
    }

    /// [`Int8::linear`] for each row separately, so that a row's result does not depend on the
    /// others.
    pub(super) fn linear_by_rows(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let [outputs, inputs] = self.shape();
        let count = x.len() / inputs;
        let (activations, outliers) = quantize_by_rows(x, inputs);
        let kept: Vec<Vec<f32>> = x
            .chunks_exact(inputs)
            .zip(&outliers)
            .map(|(row, outliers)| columns_of(row, inputs, outliers))
            .collect();
        let rows_with_any: Vec<usize> = (0..count)
            .filter(|&row| !outliers[row].is_empty())
            .collect();
        rows::by_columns((count, outputs), inputs, None, |first, columns| {
            self.products_of_codes(&activations, bias, first, columns);
            for &row in &rows_with_any {
                for (output, out) in (first..).zip(columns.chunks_exact_mut(count)) {
                    let out = &mut out[row..=row];
                    self.add_outliers(output, out, &kept[row], &outliers[row]);
                }
            }
        })
    }

    /// The products of codes, scaled, plus the bias: all rows of each output from `first` on.
    fn products_of_codes(
        &self,
        x: &Activations,
        bias: Option<&[f32]>,
        first: usize,
        columns: &mut [f32],
    ) {
        let (inputs, rows) = (self.shape()[1], x.absmax.len());
        let (block_outputs, block_inputs) = by_rows::block(rows, inputs);
        let mut sums = vec![0; block_outputs * rows];
        for (number, out) in columns.chunks_mut(block_outputs * rows).enumerate() {
            let first = first + number * block_outputs;
            let sums = &mut sums[..out.len()];
            sums.fill(0);
            for at in (0..inputs).step_by(block_inputs) {
                tiles::add_products_of_codes(Part {
                    out: &mut *sums,
                    rows,
                    x: &x.codes[at..],
                    x_width: inputs,
                    w: &self.codes()[first * inputs + at..],
                    w_width: inputs,
                    depth: block_inputs.min(inputs - at),
                });
            }
            kernels::simd(
                #[inline(always)]
                || {
                    let outputs = out.chunks_exact_mut(rows).zip(sums.chunks_exact(rows));
                    for (output, (out, sums)) in (first..).zip(outputs) {
                        let bias = bias.map_or(0.0, |bias| bias[output]);
                        let absmax = self.absmax()[output];
                        for ((out, &sum), scale) in out.iter_mut().zip(sums).zip(&x.absmax) {
                            let scaled = sum as f32 * scale * absmax / (HIGHEST * HIGHEST);
                            *out = through_fp16(through_fp16(scaled) + bias);
                        }
                    }
                },
            );
        }
    }

    /// Adds the products of one output's weights with the outlier values, `kept`, to every row.
    fn add_outliers(&self, output: usize, out: &mut [f32], kept: &[f32], outliers: &[usize]) {
        let (codes, unit) = (self.row(output), self.unit(output));
        for (out, x) in out.iter_mut().zip(kept.chunks_exact(outliers.len())) {
            let products = x.iter().zip(outliers);
            let products = products.map(|(x, &column)| x * (f32::from(codes[column]) * unit));
            *out += products.sum::<f32>();
        }
    }
}

/// [`Activations::quantize`] for each row separately: the codes of all rows, and each row's outlier
/// columns.
fn quantize_by_rows(x: &[f32], inputs: usize) -> (Activations, Vec<Vec<usize>>) {
    let mut all = Activations {
        codes: Vec::with_capacity(x.len()),
        absmax: Vec::new(),
        outliers: Vec::new(),
    };
    let mut outliers = Vec::new();
    for row in rows::map(x, inputs, |row| {
        kernels::simd(
            #[inline(always)]
            || Activations::quantize(row, inputs),
        )
    }) {
        all.codes.extend(row.codes);
        all.absmax.extend(row.absmax);
        outliers.push(row.outliers);
    }
    (all, outliers)
}

/// The values of some columns: (rows, columns).
fn columns_of(x: &[f32], inputs: usize, columns: &[usize]) -> Vec<f32> {
    x.chunks_exact(inputs)
        .flat_map(|row| columns.iter().map(|&column| row[column]))
        .collect()
}

/// The nearest fp16, or the value itself where that would be infinite.
#[inline(always)]
fn through_fp16(value: f32) -> f32 {
    let rounded = Float::Fp16.round(value);
    if rounded.is_finite() { rounded } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_int8_a_row_among_others_is_as_alone() {
        let (inputs, outputs) = (70, 9);
        let values = |count: usize, bound: f32| -> Vec<f32> {
            let wave = |at: usize| bound * (1.0 + at as f32 * 1.7).sin();
            (0..count).map(wave).collect()
        };
        let weight = Int8::quantize(&values(inputs * outputs, 0.2), inputs);
        let bias = values(outputs, 1.0);
        // Some of the values are outliers.
        let x = values(11 * inputs, 6.05);
        let together = weight.linear_by_rows(&x, Some(&bias));
        let alone = x
            .chunks(inputs)
            .flat_map(|row| weight.linear(row, Some(&bias)));
        assert_eq!(together, alone.collect::<Vec<f32>>());
        assert_ne!(together, weight.linear(&x, Some(&bias)));
    }
}
