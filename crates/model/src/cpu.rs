//! The CPU: candle stores and multiplies matrices; our loops over rows (rayon, SIMD by dispatch) do
//! the rest. [`Ops`] is implemented here, `training.rs` and `decoding.rs` have the other traits.
//!
//! Everything repeats bit for bit. Rows and heads are independent tasks, and each has a fixed
//! order. The blocks of products depend on shapes and cache sizes only, so that each element is
//! summed in the same order with any number of threads.

mod adapter;
mod attention;
mod by_rows;
mod decoding;
mod frozen;
mod kernels;
mod products;
mod rows;
mod storage;
mod training;

use candle_core::{Device, Tensor};

use crate::dropout::{Mask, MaskRow};
use crate::error::Result;
use crate::ops::{Affine, Norm, Ops, Slot, Span};
use crate::stored::StoredForm;
use crate::weight::Weight;
pub(crate) use storage::read;
use storage::{columns, matrix, write};

/// The CPU's operations.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu;

/// A pass's sequences, and each row's position in dropout's mask.
pub(crate) struct Layout {
    spans: Vec<Span>,
    places: Vec<MaskRow>,
}

impl Ops for Cpu {
    type Array = Tensor;
    type Weight = Weight;
    type Layout = Layout;
    type Flat = Vec<f32>;

    fn upload(&self, values: &[f32], rows: usize, columns: usize) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, (rows, columns), &Device::Cpu)?)
    }

    fn adopt(&self, tensor: &StoredForm) -> Result<Tensor> {
        let tensor = tensor.weight()?.dequantized()?;
        if tensor.rank() == 1 {
            Ok(tensor.unsqueeze(0)?)
        } else {
            Ok(tensor)
        }
    }

    fn freeze(&self, weight: &StoredForm) -> Result<Weight> {
        Ok(weight.weight()?.clone())
    }

    fn layout(&self, spans: &[Span], places: &[MaskRow]) -> Result<Layout> {
        Ok(Layout {
            spans: spans.to_vec(),
            places: places.to_vec(),
        })
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(read(x)?.to_vec())
    }

    fn gather(&self, table: &Tensor, numbers: &[u32]) -> Result<Tensor> {
        let (columns, table) = (columns(table), read(table)?);
        let mut out = Vec::with_capacity(numbers.len() * columns);
        for &number in numbers {
            out.extend_from_slice(&table[number as usize * columns..][..columns]);
        }
        matrix(out, columns)
    }

    fn linear(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        products::linear(x, w, None)
    }

    fn frozen_linear(&self, x: &Tensor, w: &Affine<Self>, plus: Option<&Tensor>) -> Result<Tensor> {
        plus_matrix(frozen::linear(x, &w.weight, w.bias.as_ref())?, plus)
    }

    fn lora_a(
        &self,
        x: &Tensor,
        a: &Tensor,
        mask: Option<(&Mask, &Layout)>,
    ) -> Result<(Tensor, Tensor)> {
        let masked = mask.map(|mask| masked(x, mask)).transpose()?;
        let input = masked.unwrap_or_else(|| x.clone());
        let shrunk = self.linear(&input, a)?;
        Ok((input, shrunk))
    }

    fn add_lora_b(
        &self,
        y: &Tensor,
        first: usize,
        x: &Tensor,
        b: &Tensor,
        scale: f32,
    ) -> Result<()> {
        add_scaled(y, first, &self.linear(x, b)?, scale)
    }

    fn layer_norm(&self, x: &Tensor, norm: &Norm<Tensor>) -> Result<Tensor> {
        let columns = columns(x);
        let (x, weight, bias) = (read(x)?, read(&norm.weight)?, read(&norm.bias)?);
        let mut out = vec![0.0; x.len()];
        rows::each(&mut out, columns, |row, y| {
            kernels::layer_norm(y, &x[row * columns..][..columns], &weight, &bias, norm.eps);
        });
        matrix(out, columns)
    }

    fn flat(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn matrices(&self, flat: &Vec<f32>, slots: &[Slot]) -> Result<Vec<Tensor>> {
        slots
            .iter()
            .map(|slot| self.upload(&flat[slot.range.clone()], slot.rows, slot.columns))
            .collect()
    }
}

/// `y + plus`, in place.
fn plus_matrix(y: Tensor, plus: Option<&Tensor>) -> Result<Tensor> {
    if let Some(plus) = plus {
        add_scaled(&y, 0, plus, 1.0)?;
    }
    Ok(y)
}

/// `y[first..] += scale × x`
fn add_scaled(y: &Tensor, first: usize, x: &Tensor, scale: f32) -> Result<()> {
    let (columns, x) = (columns(x), read(x)?);
    write(y, |y| {
        let y = &mut y[first * columns..][..x.len()];
        rows::each(y, columns, |row, y| {
            kernels::add_scaled(y, &x[row * columns..][..columns], scale)
        });
    })
}

/// A masked, scaled copy.
fn masked(x: &Tensor, (mask, layout): (&Mask, &Layout)) -> Result<Tensor> {
    let columns = columns(x);
    let mut out = read(x)?.to_vec();
    rows::each(&mut out, columns, |row, values| {
        mask.apply(layout.places[row], values);
    });
    matrix(out, columns)
}
