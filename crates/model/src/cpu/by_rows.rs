//! Products of decoding, in which a row costs less among others than alone and has the same bytes.
//!
//! A block of weights is made to floats once and multiplied by all rows while it is in the cache.
//! The order of an element's sum depends on the count of its inputs alone.

use candle_core::Tensor;

use super::kernels::tiles::{Part, add_products, are_one_tile};
use super::rows;
use super::storage::{matrix, read};
use crate::error::Result;
use crate::quant::rows::{Rounding, Rows};

/// Weights of a block: in f32 they fit into a core's second cache. Its inputs are a multiple of
/// [`SUM`](super::kernels::tiles::SUM).
const BLOCK: usize = 48 << 10;
/// Outputs of a block.
const OUTPUTS: usize = 48;
/// Inputs of a block of one output, whose packed weights are used once: in f32 they fit into a
/// core's first cache.
const INPUTS_USED_ONCE: usize = 2048;

/// A weight, (outputs, inputs).
#[derive(Clone, Copy)]
pub(super) enum Weights<'a> {
    Floats(&'a [f32]),
    Packed(&'a dyn Rows),
}

/// Outputs and inputs of a block for this count of rows, of weights that are used as they lie in
/// memory. Those that are used once are read in long pieces.
pub(super) fn block(rows: usize, inputs: usize) -> (usize, usize) {
    if are_one_tile(rows) {
        (OUTPUTS, inputs)
    } else {
        (OUTPUTS, BLOCK / OUTPUTS)
    }
}

/// [`block`] of packed weights, whose values are written to the cache first.
fn packed_block(rows: usize) -> (usize, usize) {
    if are_one_tile(rows) {
        (1, INPUTS_USED_ONCE)
    } else {
        (OUTPUTS, BLOCK / OUTPUTS)
    }
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
    let (block_outputs, block_inputs) = match w {
        Weights::Floats(_) => block(rows, inputs),
        Weights::Packed(_) => packed_block(rows),
    };
    rows::by_columns((rows, outputs), inputs, bias, |first, columns| {
        let mut scratch = match w {
            Weights::Floats(_) => Vec::new(),
            Weights::Packed(_) => vec![0.0; block_outputs * inputs.min(block_inputs)],
        };
        for (number, out) in columns.chunks_mut(block_outputs * rows).enumerate() {
            let first = first + number * block_outputs;
            for at in (0..inputs).step_by(block_inputs) {
                let depth = block_inputs.min(inputs - at);
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
