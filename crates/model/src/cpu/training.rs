//! The CPU's operations of training.

use std::ops::Range;

use candle_core::Tensor;

use super::storage::{columns, matrix, read, write};
use super::{Cpu, Layout, add_scaled, attention, frozen, kernels, masked, rows};
use crate::activation::Activation;
use crate::dropout::Mask;
use crate::error::Result;
use crate::ops::training::{Attended, Learn, Upstream};
use crate::ops::{Heads, Norm};
use crate::optim::{self, Coefficients};
use crate::weight::Weight;

impl Learn for Cpu {
    type Sum = f64;

    const LOGITS_AT_ONCE: usize = 1 << 24;

    fn zeros(&self, rows: usize, columns: usize) -> Result<Tensor> {
        matrix(vec![0.0; rows * columns], columns)
    }

    fn scatter(&self, into: &Tensor, x: &Tensor, numbers: &[u32]) -> Result<()> {
        let (columns, x) = (columns(x), read(x)?);
        write(into, |into| {
            for (row, &number) in x.chunks_exact(columns).zip(numbers) {
                into[number as usize * columns..][..columns].copy_from_slice(row);
            }
        })
    }

    fn product(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(a.matmul(b)?)
    }

    fn frozen_backward(&self, dy: &Upstream<'_, Tensor>, w: &Weight) -> Result<Tensor> {
        self.settle(dy)?;
        frozen::product(dy.matrix(), w)
    }

    fn add_lora_a_backward(
        &self,
        dx: &Tensor,
        d: &Tensor,
        a: &Tensor,
        scale: f32,
        mask: Option<(&Mask, &Layout)>,
    ) -> Result<()> {
        let mut product = self.product(d, a)?;
        if let Some(mask) = mask {
            product = masked(&product, mask)?;
        }
        add_scaled(dx, 0, &product, scale)
    }

    fn add_gradient(
        &self,
        (out, range): (&mut Vec<f32>, Range<usize>),
        a: &Tensor,
        b: &Tensor,
        scale: f32,
    ) -> Result<()> {
        let product = a.t()?.matmul(b)?;
        kernels::add_scaled(&mut out[range], &read(&product)?, scale);
        Ok(())
    }

    fn layer_norm_backward(
        &self,
        dx: &Tensor,
        dy: &Tensor,
        x: &Tensor,
        norm: &Norm<Tensor>,
    ) -> Result<()> {
        let columns = columns(x);
        let (dy, x, weight) = (read(dy)?, read(x)?, read(&norm.weight)?);
        write(dx, |dx| {
            rows::each(dx, columns, |row, dx| {
                let range = row * columns..(row + 1) * columns;
                kernels::layer_norm_backward(dx, &dy[range.clone()], &x[range], &weight, norm.eps);
            });
        })
    }

    fn activate_keeping(&self, x: Tensor, kind: Activation) -> Result<(Tensor, Tensor)> {
        let columns = columns(&x);
        let mut slope = vec![0.0; x.elem_count()];
        write(&x, |x| {
            let (widths, slope) = ((columns, columns), slope.as_mut_slice());
            rows::each_with(x, slope, widths, |_, x, slope| {
                kernels::activate_with_slope(x, slope, kind)
            });
        })?;
        Ok((x, matrix(slope, columns)?))
    }

    /// The saved matrix is the derivative itself.
    fn activate_backward(&self, dy: &Tensor, slope: &Tensor, _: Activation) -> Result<()> {
        let (columns, slope) = (columns(slope), read(slope)?);
        write(dy, |dy| {
            rows::each(dy, columns, |row, dy| {
                kernels::multiply(dy, &slope[row * columns..][..columns])
            })
        })
    }

    fn attention(
        &self,
        qkv: Tensor,
        heads: &Heads<Tensor>,
        layout: &Layout,
    ) -> Result<Attended<Tensor>> {
        attention::forward(&qkv, heads, &layout.spans)
    }

    fn attention_backward(
        &self,
        d_out: &Tensor,
        attended: &Attended<Tensor>,
        heads: &Heads<Tensor>,
        layout: &Layout,
    ) -> Result<Tensor> {
        attention::backward(d_out, attended, heads, &layout.spans)
    }

    fn sum(&self) -> Result<f64> {
        Ok(0.0)
    }

    fn read_sum(&self, sum: &f64) -> Result<f64> {
        Ok(*sum)
    }

    fn cross_entropy(
        &self,
        sum: &mut f64,
        logits: &Tensor,
        targets: &[u32],
        factor: f32,
    ) -> Result<()> {
        let columns = columns(logits);
        let mut losses = vec![0.0; targets.len()];
        write(logits, |logits| {
            rows::each_with(logits, &mut losses, (columns, 1), |row, logits, loss| {
                loss[0] = kernels::cross_entropy(logits, targets[row] as usize, factor);
            });
        })?;
        // In order, in f64.
        *sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        Ok(())
    }

    fn read_flat(&self, flat: &Vec<f32>) -> Result<Vec<f32>> {
        Ok(flat.clone())
    }

    fn clear(&self, flat: &mut Vec<f32>) -> Result<()> {
        flat.fill(0.0);
        Ok(())
    }

    fn scale_flat(&self, flat: &mut Vec<f32>, factor: f32) -> Result<()> {
        flat.iter_mut().for_each(|value| *value *= factor);
        Ok(())
    }

    fn l2_norm(&self, flat: &Vec<f32>) -> Result<f64> {
        Ok(optim::l2_norm(flat))
    }

    fn adamw(
        &self,
        values: &mut Vec<f32>,
        gradients: &Vec<f32>,
        (first, second): (&mut Vec<f32>, &mut Vec<f32>),
        coefficients: &Coefficients,
    ) -> Result<()> {
        coefficients.apply(values, gradients, (first, second));
        Ok(())
    }
}
