//! The GPU's operations of training: the kernels and products that each one launches.

use std::ops::Range;

use super::array::{Array, Element, Flat, Sum};
use super::context::Cuda;
use super::fp8::Added;
use super::frozen::Frozen;
use super::launch::activation_id;
use super::layout::Layout;
use crate::activation::Activation;
use crate::dropout::Mask;
use crate::error::Result;
use crate::gpu_limits::GPU_LOGITS;
use crate::ops::training::{Attended, Input, Learn, Product, Upstream};
use crate::ops::{Affine, Heads, Norm, Ops};
use crate::optim::Coefficients;
use crate::quant::rows::Rounding;

/// Blocks of a flat buffer's norm; each makes a partial sum.
const NORM_BLOCKS: usize = 256;

impl Learn for Cuda {
    type Sum = Sum;

    const LOGITS_AT_ONCE: usize = GPU_LOGITS;

    fn scales_loss(&self) -> bool {
        self.element == Element::F16
    }

    fn zeros(&self, rows: usize, columns: usize) -> Result<Array> {
        self.zeros_of(rows, columns)
    }

    fn scatter(&self, into: &Array, x: &Array, numbers: &[u32]) -> Result<()> {
        let on_gpu = self.bring(numbers)?;
        let args = [
            into.into(),
            x.into(),
            on_gpu.address.into(),
            x.rows.into(),
            x.columns.into(),
        ];
        self.by_rows("scatter", &[into, x], x.rows, &args)
    }

    fn product(&self, a: &Array, b: &Array) -> Result<Array> {
        if let Some(out) = self.lora_b_backward(a, b)? {
            return Ok(out);
        }
        let out = self.empty(a.rows, b.columns)?;
        self.product_into(&out, (a, b), None, 1.0)?;
        Ok(out)
    }

    fn frozen_forward(
        &self,
        input: Input<'_, Array>,
        w: &Affine<Self>,
        plus: Option<&Array>,
    ) -> Result<Product<Array>> {
        let (input, slope) = match input {
            Input::Plain(x) => (x.clone(), None),
            Input::Normed(x, norm) => {
                let (normed, y) = self.normed_linear(x, norm, w, plus)?;
                return Ok(Product {
                    y,
                    input: Some(normed),
                    slope: None,
                });
            }
            Input::Activated(x, kind) => {
                let bias = w.bias.as_ref();
                if let Frozen::Fp8(codes) = &w.weight
                    && let Some(y) = self.fp8_activated((&x, kind), codes, Added { bias, plus })?
                {
                    return Ok(Product {
                        y,
                        input: None,
                        slope: Some(x),
                    });
                }
                let (activated, slope) = self.activate_keeping(x, kind)?;
                (activated, Some(slope))
            }
        };
        Ok(Product {
            y: self.frozen_linear(&input, w, plus)?,
            input: Some(input),
            slope,
        })
    }

    fn frozen_backward(&self, dy: &Upstream<'_, Array>, w: &Frozen) -> Result<Array> {
        if let Frozen::Fp8(codes) = w {
            let fused = match *dy {
                Upstream::Plain(_) => None,
                Upstream::PlusNorm {
                    sum,
                    d_norm,
                    x,
                    norm,
                } => self.fp8_norm_backward((sum, d_norm), (x, norm), codes)?,
                Upstream::Activated { dy, slope, kind } => {
                    self.fp8_activation_backward(dy, (slope, kind), codes)?
                }
            };
            if let Some(out) = fused {
                return Ok(out);
            }
        }
        self.settle(dy)?;
        match w {
            Frozen::Fp8(codes) => self.fp8_product(dy.matrix(), codes),
            w => self.product(dy.matrix(), &self.dequantized(w, Rounding::AsQuantized)?),
        }
    }

    fn add_lora_a_backward(
        &self,
        dx: &Array,
        d: &Array,
        a: &Array,
        scale: f32,
        mask: Option<(&Mask, &Layout)>,
    ) -> Result<()> {
        self.lora_a_backward_into(dx, (d, a), scale, mask)
    }

    fn add_gradient(
        &self,
        (out, range): (&mut Flat, Range<usize>),
        a: &Array,
        b: &Array,
        scale: f32,
    ) -> Result<()> {
        self.sum_gradient(out.0.address + 4 * range.start as u64, a, b, scale)
    }

    fn layer_norm_backward(
        &self,
        dx: &Array,
        dy: &Array,
        x: &Array,
        norm: &Norm<Array>,
    ) -> Result<()> {
        let args = [
            dx.into(),
            dy.into(),
            x.into(),
            (&norm.weight).into(),
            x.columns.into(),
            norm.eps.into(),
        ];
        let arrays = [dx, dy, x, &norm.weight];
        self.by_blocks("layer_norm_backward", &arrays, (x.rows, 128), &args)
    }

    /// Saves the input. Computing the derivative from it again is cheaper than writing and reading
    /// the derivative.
    fn activate_keeping(&self, x: Array, kind: Activation) -> Result<(Array, Array)> {
        let out = self.empty(x.rows, x.columns)?;
        let args = [
            (&out).into(),
            (&x).into(),
            activation_id(kind).into(),
            x.len().into(),
        ];
        self.by_values("activate", &[&out, &x], x.len(), &args)?;
        Ok((out, x))
    }

    fn activate_backward(&self, dy: &Array, x: &Array, kind: Activation) -> Result<()> {
        let args = [
            dy.into(),
            x.into(),
            activation_id(kind).into(),
            x.len().into(),
        ];
        self.by_values("activate_backward", &[dy, x], x.len(), &args)
    }

    /// Rotates queries and keys in place, and saves them rotated.
    fn attention(
        &self,
        qkv: Array,
        heads: &Heads<Array>,
        layout: &Layout,
    ) -> Result<Attended<Array>> {
        self.attend(qkv, heads, layout)
    }

    fn attention_backward(
        &self,
        d_out: &Array,
        attended: &Attended<Array>,
        heads: &Heads<Array>,
        layout: &Layout,
    ) -> Result<Array> {
        self.attend_back(d_out, attended, heads, layout)
    }

    fn sum(&self) -> Result<Sum> {
        Ok(Sum(self.bring(&[0.0])?))
    }

    fn read_sum(&self, sum: &Sum) -> Result<f64> {
        Ok(self.fetch(&sum.0)?[0])
    }

    fn cross_entropy(
        &self,
        sum: &mut Sum,
        logits: &Array,
        targets: &[u32],
        factor: f32,
    ) -> Result<()> {
        let losses = self.alloc::<f32>(targets.len())?;
        let on_gpu = self.bring(targets)?;
        let args = [
            logits.into(),
            losses.address.into(),
            on_gpu.address.into(),
            logits.columns.into(),
            factor.into(),
        ];
        self.by_blocks("cross_entropy", &[logits], (targets.len(), 512), &args)?;
        let args = [
            sum.0.address.into(),
            losses.address.into(),
            targets.len().into(),
        ];
        self.launch("add_losses", (1, 1), 1024, &args)
    }

    fn read_flat(&self, flat: &Flat) -> Result<Vec<f32>> {
        self.fetch(&flat.0)
    }

    fn clear(&self, flat: &mut Flat) -> Result<()> {
        self.zero(&mut flat.0)
    }

    fn scale_flat(&self, flat: &mut Flat, factor: f32) -> Result<()> {
        let args = [flat.0.address.into(), factor.into(), flat.0.len().into()];
        self.launch_values("scale_flat", flat.0.len(), &args)
    }

    fn l2_norm(&self, flat: &Flat) -> Result<f64> {
        let parts = self.alloc::<f64>(NORM_BLOCKS)?;
        let args = [
            parts.address.into(),
            flat.0.address.into(),
            flat.0.len().into(),
        ];
        self.launch("squares", (NORM_BLOCKS, 1), 256, &args)?;
        Ok(self.fetch(&parts)?.iter().sum::<f64>().sqrt())
    }

    fn adamw(
        &self,
        values: &mut Flat,
        gradients: &Flat,
        (first, second): (&mut Flat, &mut Flat),
        coefficients: &Coefficients,
    ) -> Result<()> {
        let c = coefficients;
        let args = [
            values.0.address.into(),
            gradients.0.address.into(),
            first.0.address.into(),
            second.0.address.into(),
            c.keep.into(),
            c.rate.into(),
            c.root.into(),
            c.eps.into(),
            c.first[0].into(),
            c.first[1].into(),
            c.second[0].into(),
            c.second[1].into(),
            values.0.len().into(),
        ];
        self.launch_values("adamw", values.0.len(), &args)
    }
}
