//! Products of decoding, in which a row costs less among others than alone and has the same bytes.
//!
//! A block of weights is made to floats once and multiplied by all rows while it is in the cache.
//! The order of an element's sum depends on the count of its inputs alone.

use candle_core::Tensor;

use super::kernels::tiles::{Part, add_products, outputs_of_one_tile};
use super::rows;
use super::storage::{matrix, read};
use crate::error::Result;
use crate::quant::rows::{Rounding, Rows};

/// Inputs of a part of a sum: those of a tile fit into a core's first cache.
const DEPTH: usize = 1024;
/// Outputs of a block: their weights, [`DEPTH`] inputs deep, fit into a core's second cache.
const OUTPUTS: usize = 48;

/// A weight, (outputs, inputs).
#[derive(Clone, Copy)]
pub(super) enum Weights<'a> {
    Floats(&'a [f32]),
    Packed(&'a dyn Rows),
}

/// Outputs of a block for this count of rows. A weight that only one tile uses is not kept for
/// another one.
pub(super) fn block_outputs(rows: usize) -> usize {
    outputs_of_one_tile(rows).unwrap_or(OUTPUTS)
}

/// `x wᵀ + bias` by a matrix in f32.
pub(super) fn tensor_linear(x: &[f32], w: &Tensor, bias: Option<&[f32]>) -> Result<Tensor> {
    let (outputs, inputs) = w.dims2()?;
    let y = linear(x, Weights::Floats(&read(w)?), bias, [outputs, inputs]);
    matrix(y, outputs)
}

/// `x wᵀ + bias`
pub(super) fn linear(
    x: &[f32],
    w: Weights<'_>,
    bias: Option<&[f32]>,
    [outputs, inputs]: [usize; 2],
) -> Vec<f32> {
    let rows = x.len() / inputs;
    let block_outputs = block_outputs(rows);
    rows::by_columns((rows, outputs), inputs, bias, |first, columns| {
        let mut scratch = match w {
            Weights::Floats(_) => Vec::new(),
            Weights::Packed(_) => vec![0.0; block_outputs * inputs.min(DEPTH)],
        };
        for (number, out) in columns.chunks_mut(block_outputs * rows).enumerate() {
            let first = first + number * block_outputs;
            for at in (0..inputs).step_by(DEPTH) {
                let depth = DEPTH.min(inputs - at);
                let (w, w_width) = match w {
                    Weights::Floats(w) => (&w[first * inputs + at..], inputs),
                    Weights::Packed(w) => {
                        let outputs = first..first + out.len() / rows;
                        for (output, values) in outputs.zip(scratch.chunks_exact_mut(depth)) {
                            w.part_into((output, at), values, Rounding::None);
                        }
                        (&scratch[..], depth)
                    }
                };
                add_products(Part {
                    out: &mut *out,
                    rows,
                    x: &x[at..],
                    x_width: inputs,
                    w,
                    w_width,
                    depth,
                });
            }
        }
    })
}
