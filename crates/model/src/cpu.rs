//! The CPU: candle holds matrices and multiplies them, loops of our own over rows (rayon, SIMD by dispatch) do the rest.
//!
//! Everything repeats bit for bit. Rows and heads are independent tasks with fixed orders inside; the products' blocks
//! depend on shapes and cache sizes, and each element of a product sums its depth in one order whatever the threads do.

mod attention;
mod frozen;
mod kernels;
mod rows;
mod storage;

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::base::held::Held;
use crate::config::Activation;
use crate::dropout::{Mask, Place};
use crate::error::Result;
use crate::ops::{Attended, Heads, Norm, Ops, Slot, Span};
use crate::optim::{self, Coefficients};
use crate::weight::Weight;
pub(crate) use storage::read;
use storage::write;

/// The CPU's operations.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu;

/// Keys and values: for each layer and head, rows of the head's dimensions.
pub(crate) struct CpuCache {
    layers: Vec<Vec<attention::HeadCache>>,
}

/// A pass's sequences, and where dropout finds each row.
pub(crate) struct Layout {
    spans: Vec<Span>,
    places: Vec<Place>,
}

/// Up to so many rows a product goes through dot products: packing the weights would cost more than it saves.
const FEW_ROWS: usize = 8;

fn matrix(values: Vec<f32>, columns: usize) -> Result<Tensor> {
    let rows = values.len().checked_div(columns).unwrap_or(0);
    Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?)
}

fn columns(x: &Tensor) -> usize {
    x.dims().last().copied().unwrap_or(0)
}

impl Ops for Cpu {
    type Array = Tensor;
    type Weight = Weight;
    type Cache = CpuCache;
    type Layout = Layout;
    type Flat = Vec<f32>;
    type Sum = f64;

    const LOGITS_AT_ONCE: usize = 1 << 24;

    fn upload(&self, values: &[f32], rows: usize, columns: usize) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, (rows, columns), &Device::Cpu)?)
    }

    fn adopt(&self, tensor: &Held) -> Result<Tensor> {
        let tensor = tensor.weight()?.dequantized()?;
        if tensor.rank() == 1 {
            Ok(tensor.unsqueeze(0)?)
        } else {
            Ok(tensor)
        }
    }

    fn freeze(&self, weight: &Held) -> Result<Weight> {
        Ok(weight.weight()?.clone())
    }

    fn layout(&self, spans: &[Span], places: &[Place]) -> Result<Layout> {
        Ok(Layout {
            spans: spans.to_vec(),
            places: places.to_vec(),
        })
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(read(x)?.to_vec())
    }

    fn cache(&self, layers: usize, heads: usize) -> CpuCache {
        CpuCache {
            layers: (0..layers)
                .map(|_| vec![attention::HeadCache::default(); heads])
                .collect(),
        }
    }

    fn gather(&self, table: &Tensor, numbers: &[u32]) -> Result<Tensor> {
        let (columns, table) = (columns(table), read(table)?);
        let mut out = Vec::with_capacity(numbers.len() * columns);
        for &number in numbers {
            out.extend_from_slice(&table[number as usize * columns..][..columns]);
        }
        matrix(out, columns)
    }

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

    fn rows(&self, x: &Tensor, range: Range<usize>) -> Result<Tensor> {
        let columns = columns(x);
        matrix(
            read(x)?[range.start * columns..range.end * columns].to_vec(),
            columns,
        )
    }

    fn product(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(a.matmul(b)?)
    }

    fn linear(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
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

    fn frozen_linear(
        &self,
        x: &Tensor,
        w: &Weight,
        bias: Option<&Tensor>,
        plus: Option<&Tensor>,
    ) -> Result<Tensor> {
        let y = frozen::linear(x, w, bias)?;
        if let Some(plus) = plus {
            add_scaled(&y, 0, plus, 1.0)?;
        }
        Ok(y)
    }

    fn frozen_product(&self, dy: &Tensor, w: &Weight) -> Result<Tensor> {
        frozen::product(dy, w)
    }

    fn shrink(
        &self,
        x: &Tensor,
        a: &Tensor,
        mask: Option<(&Mask, &Layout)>,
    ) -> Result<(Tensor, Tensor)> {
        let masked = mask.map(|mask| masked(x, mask)).transpose()?;
        let input = masked.unwrap_or_else(|| x.clone());
        let shrunk = self.linear(&input, a, None)?;
        Ok((input, shrunk))
    }

    fn add_linear(
        &self,
        y: &Tensor,
        first: usize,
        x: &Tensor,
        w: &Tensor,
        scale: f32,
    ) -> Result<()> {
        add_scaled(y, first, &self.linear(x, w, None)?, scale)
    }

    fn add_product(
        &self,
        y: &Tensor,
        a: &Tensor,
        b: &Tensor,
        scale: f32,
        mask: Option<(&Mask, &Layout)>,
    ) -> Result<()> {
        let mut product = self.product(a, b)?;
        if let Some(mask) = mask {
            product = masked(&product, mask)?;
        }
        add_scaled(y, 0, &product, scale)
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

    fn layer_norm(&self, x: &Tensor, norm: &Norm<Tensor>) -> Result<Tensor> {
        let columns = columns(x);
        let (x, weight, bias) = (read(x)?, read(&norm.weight)?, read(&norm.bias)?);
        let mut out = vec![0.0; x.len()];
        rows::each(&mut out, columns, |row, y| {
            kernels::layer_norm(y, &x[row * columns..][..columns], &weight, &bias, norm.eps);
        });
        matrix(out, columns)
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

    fn activate(&self, x: &Tensor, kind: Activation) -> Result<()> {
        let columns = columns(x);
        write(x, |x| {
            rows::each(x, columns, |_, x| kernels::activate(x, kind))
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

    /// The slope itself was kept.
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

    fn attention_cached(
        &self,
        qkv: &Tensor,
        heads: &Heads<Tensor>,
        layout: &Layout,
        layer: usize,
        caches: &mut [&mut CpuCache],
    ) -> Result<Tensor> {
        let mut layers: Vec<_> = caches
            .iter_mut()
            .map(|cache| cache.layers[layer].as_mut_slice())
            .collect();
        attention::cached(qkv, heads, &layout.spans, &mut layers)
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
        // One order, in f64.
        *sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        Ok(())
    }

    fn flat(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
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

    fn norm(&self, flat: &Vec<f32>) -> Result<f64> {
        Ok(optim::norm(flat))
    }

    fn matrices(&self, flat: &Vec<f32>, slots: &[Slot]) -> Result<Vec<Tensor>> {
        slots
            .iter()
            .map(|slot| self.upload(&flat[slot.range.clone()], slot.rows, slot.columns))
            .collect()
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
