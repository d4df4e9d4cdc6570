//! Products of matrices in f32.

use candle_core::Tensor;

use super::storage::{columns, matrix, read, write};
use super::{kernels, rows};
use crate::error::Result;

/// Up to this many rows a product is computed by dot products, because packing the weights would
/// cost more than it saves.
pub(super) const FEW_ROWS: usize = 8;

/// `x wᵀ + bias`
pub(super) fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (inputs, outputs) = (columns(x), w.dims()[0]);
    let bias = bias.map(read).transpose()?;
    if x.dims()[0] <= FEW_ROWS {
        return matrix(
            rows::few_rows(&read(x)?, &read(w)?, bias.as_deref(), inputs),
            outputs,
        );
    }
    let y = x.matmul(&w.t()?)?;
    if let Some(bias) = bias {
        write(&y, |y| {
            rows::each(y, outputs, |_, y| kernels::add(y, &bias))
        })?;
    }
    Ok(y)
}
