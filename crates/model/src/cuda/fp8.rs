//! Weights in 8-bit floats, and products of their codes with those of activations and gradients,
//! which are quantized with a scale for each row. Where a GPU or a shape has no such product, the
//! weight is dequantized.

use super::array::{Array, Element, ROWS};
use super::context::Cuda;
use super::launch::{Arg, activation_id};
use super::product_plan::Product;
use crate::activation::Activation;
use crate::error::Result;
use crate::ops::Norm;
use crate::quant::Fp8;

/// The most threads of the quantizing kernel, and the numbers of packs of eight values that a
/// thread can keep.
const MAX_THREADS: usize = 384;
const PACKS: [usize; 4] = [1, 2, 4, 8];
/// Columns of the widest row that fits.
const WIDEST: usize = 8 * 8 * MAX_THREADS;
/// Threads of a row in the norms' quantizing kernels, and columns of the widest row that fits.
const NORM_THREADS: usize = 128;
const WIDEST_NORM: usize = 3 * 8 * NORM_THREADS;
/// Rows of the product that probes whether the library has products of codes.
const PROBE_ROWS: usize = 4096;

/// A weight's codes, and a scale for each row.
pub(crate) struct Fp8Codes {
    /// (outputs, inputs)
    pub(super) codes: Array,
    /// (1, outputs)
    pub(super) scales: Array,
    /// Whether forward multiplies codes.
    forward: bool,
    /// For a backward that multiplies codes: the transposed codes, (inputs, outputs), because the
    /// depth has to be along the rows of both factors; and ones as their scales, (1, inputs).
    transposed: Option<[Array; 2]>,
}

/// The codes of a product's other factor, and a scale for each row.
struct Quantized {
    codes: Array,
    scales: Array,
}

/// Summands of a product: a bias for each row, and another matrix.
#[derive(Clone, Copy, Default)]
pub(super) struct Added<'a> {
    pub(super) bias: Option<&'a Array>,
    pub(super) plus: Option<&'a Array>,
}

/// The values that are quantized.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// A matrix.
    Plain(&'a Array),
    /// A matrix, its columns times factors.
    Scaled(&'a Array, &'a Array),
    /// The activation of a matrix.
    Activated(&'a Array, Activation),
    /// A gradient times the activation's derivative at a matrix, its columns times factors.
    ActivationBackward(&'a Array, &'a Array, Activation, &'a Array),
    /// The norm of the second matrix, which is written to the first.
    Normed(&'a Array, &'a Array, &'a Norm<Array>),
    /// The first matrix after the gradient of a norm is added to it, its columns times factors.
    NormBackward([&'a Array; 3], &'a Norm<Array>, &'a Array),
}

impl<'a> Source<'a> {
    /// A matrix of the shape.
    fn rows(self) -> &'a Array {
        match self {
            Self::Plain(x) | Self::Scaled(x, _) | Self::Activated(x, _) => x,
            Self::ActivationBackward(dy, ..) => dy,
            Self::Normed(out, ..) | Self::NormBackward([out, ..], ..) => out,
        }
    }
}

impl Cuda {
    pub(super) fn fp8_codes(&self, fp8: &Fp8) -> Result<Fp8Codes> {
        let [rows, columns] = fp8.shape();
        let codes = self.adopt_bytes(Element::E4m3, fp8.codes(), rows, columns)?;
        let scales = self.upload_as(Element::F32, fp8.scales(), 1, rows)?;
        self.fp8_codes_of(codes, scales)
    }

    fn fp8_codes_of(&self, codes: Array, scales: Array) -> Result<Fp8Codes> {
        let mut weight = Fp8Codes {
            codes,
            scales,
            forward: false,
            transposed: None,
        };
        let (rows, columns) = (weight.codes.rows, weight.codes.columns);
        let fits = |size: usize| size.is_multiple_of(ROWS) && size <= WIDEST;
        if self.element != Element::Bf16 || !fits(rows) || !fits(columns) {
            return Ok(weight);
        }
        let out = self.empty(1, 1)?;
        let x = self.empty_of(Element::E4m3, 1, 1)?;
        let can_multiply = |codes: &Array, scales: &Array| {
            let probe = x.part(0, PROBE_ROWS, codes.columns);
            self.can_multiply(&codes_product(&out, (codes, scales), (&probe, scales)))
        };
        let Fp8Codes { codes, scales, .. } = &weight;
        let forward = can_multiply(codes, scales);
        let transposed = self.empty_of(Element::E4m3, columns, rows)?;
        let ones = self.upload_as(Element::F32, &vec![1.0; columns], 1, columns)?;
        let mut backward = None;
        if can_multiply(&transposed, &ones) {
            let args = [
                (&transposed).into(),
                codes.into(),
                rows.into(),
                columns.into(),
            ];
            let grid = (columns.div_ceil(64), rows.div_ceil(64));
            self.launch("transpose_codes", grid, 256, &args)?;
            backward = Some([transposed, ones]);
        }
        (weight.forward, weight.transposed) = (forward, backward);
        Ok(weight)
    }

    /// Whether the quantizing kernel takes rows with this many columns.
    pub(super) fn quantizes_fp8(&self, columns: usize) -> bool {
        columns.is_multiple_of(8) && columns <= WIDEST
    }

    /// Quantizes a weight.
    pub(super) fn weight_to_fp8(&self, raw: &Array) -> Result<Fp8Codes> {
        let quantized = self.alloc_quantized(raw.rows, raw.columns)?;
        self.quantize_fp8(&quantized, Source::Plain(raw))?;
        self.fp8_codes_of(quantized.codes, quantized.scales)
    }

    fn alloc_quantized(&self, rows: usize, columns: usize) -> Result<Quantized> {
        Ok(Quantized {
            codes: self.empty_of(Element::E4m3, rows, columns)?,
            scales: self.empty_of(Element::F32, 1, rows)?,
        })
    }

    /// Quantizes rows. The codes of padding rows are zeros.
    fn quantize_fp8(&self, to: &Quantized, from: Source<'_>) -> Result<()> {
        let Quantized { codes, scales } = to;
        let mut args: Vec<Arg> = vec![codes.into(), scales.into()];
        let x = from.rows();
        let name = match from {
            Source::Plain(x) => {
                args.extend([Arg::from(x), 0_u64.into()]);
                "to_fp8"
            }
            Source::Scaled(x, factors) => {
                args.extend([Arg::from(x), factors.into()]);
                "to_fp8"
            }
            Source::Activated(x, kind) => {
                args.extend([Arg::from(x), activation_id(kind).into()]);
                "activate_to_fp8"
            }
            Source::ActivationBackward(dy, x, kind, factors) => {
                args.extend([Arg::from(x), dy.into(), factors.into()]);
                args.push(activation_id(kind).into());
                "activate_backward_to_fp8"
            }
            Source::Normed(out, x, norm) => {
                args.extend([out, x, &norm.weight, &norm.bias].map(Arg::from));
                args.push(norm.eps.into());
                "norm_to_fp8"
            }
            Source::NormBackward(arrays, norm, factors) => {
                args.extend(arrays.map(Arg::from));
                args.extend([&norm.weight, factors].map(Arg::from));
                args.push(norm.eps.into());
                "norm_backward_to_fp8"
            }
        };
        args.extend([x.rows, x.columns].map(Arg::from));
        if let Source::Normed(..) | Source::NormBackward(..) = from {
            let kernel = self.kernel(name, x.element, None);
            return self.launch(&kernel, (codes.rows, 1), NORM_THREADS, &args);
        }
        let packs = x.columns / 8;
        let fits = |each: &usize| packs.div_ceil(*each) <= MAX_THREADS;
        let each = PACKS.into_iter().find(fits).unwrap_or(PACKS[3]);
        let kernel = format!("{name}_{}_{each}", x.element.name());
        let threads = packs.div_ceil(each).next_multiple_of(32);
        self.launch(&kernel, (codes.rows, 1), threads, &args)
    }

    /// `x wᵀ`, plus summands, by the algorithm for `planned` rows.
    pub(super) fn fp8_linear(
        &self,
        x: &Array,
        w: &Fp8Codes,
        added: Added<'_>,
        planned: Option<usize>,
    ) -> Result<Array> {
        if let Some(out) = self.linear_by_codes(Source::Plain(x), w, added, planned)? {
            return Ok(out);
        }
        let dense = self.dequantize_fp8(w)?;
        let out = self.empty(x.rows, dense.rows)?;
        let Added { bias, plus } = added;
        self.linear_into(&out, (x, &dense), bias, plus, 1.0, planned)?;
        Ok(out)
    }

    /// [`Cuda::fp8_linear`] of the activation of `x`, without storing the activation; `None` if
    /// there is no product of codes.
    pub(super) fn fp8_activated(
        &self,
        (x, kind): (&Array, Activation),
        w: &Fp8Codes,
        added: Added<'_>,
    ) -> Result<Option<Array>> {
        self.linear_by_codes(Source::Activated(x, kind), w, added, None)
    }

    /// `dy w`. The scales of w's rows multiply dy before it is quantized, so that backward
    /// multiplies the same codes of w as forward.
    pub(super) fn fp8_product(&self, dy: &Array, w: &Fp8Codes) -> Result<Array> {
        if let Some(out) = self.product_by_codes(Source::Scaled(dy, &w.scales), w)? {
            return Ok(out);
        }
        let dense = self.dequantize_fp8(w)?;
        let out = self.empty(dy.rows, dense.columns)?;
        self.product_into(&out, (dy, &dense), None, 1.0)?;
        Ok(out)
    }

    /// [`Cuda::fp8_product`] of `dy` times the activation's derivative at `x`, without storing this
    /// gradient; `None` if there is no product of codes.
    pub(super) fn fp8_activation_backward(
        &self,
        dy: &Array,
        (x, kind): (&Array, Activation),
        w: &Fp8Codes,
    ) -> Result<Option<Array>> {
        self.product_by_codes(Source::ActivationBackward(dy, x, kind, &w.scales), w)
    }

    /// The norm of `x`, and `norm wᵀ` plus a bias, by the algorithm for `planned` rows; `None` if
    /// there is no product of codes.
    pub(super) fn fp8_normed(
        &self,
        (x, norm): (&Array, &Norm<Array>),
        w: &Fp8Codes,
        bias: Option<&Array>,
        planned: Option<usize>,
    ) -> Result<Option<(Array, Array)>> {
        if !norms_fit(&[x, &norm.weight, &norm.bias]) {
            return Ok(None);
        }
        let normed = self.empty(x.rows, x.columns)?;
        let added = Added { bias, plus: None };
        let y = self.linear_by_codes(Source::Normed(&normed, x, norm), w, added, planned)?;
        Ok(y.map(|y| (normed, y)))
    }

    /// Adds the gradient of a norm to `dx`, and multiplies the sum as [`Cuda::fp8_product`]. If
    /// there is no product of codes, it adds nothing and returns `None`.
    pub(super) fn fp8_norm_backward(
        &self,
        (dx, dy): (&Array, &Array),
        (x, norm): (&Array, &Norm<Array>),
        w: &Fp8Codes,
    ) -> Result<Option<Array>> {
        if !norms_fit(&[dx, dy, x, &norm.weight]) {
            return Ok(None);
        }
        self.product_by_codes(Source::NormBackward([dx, dy, x], norm, &w.scales), w)
    }

    fn linear_by_codes(
        &self,
        x: Source<'_>,
        w: &Fp8Codes,
        added: Added<'_>,
        planned: Option<usize>,
    ) -> Result<Option<Array>> {
        if w.forward {
            self.multiply_codes(x, (&w.codes, &w.scales), added, planned)
        } else {
            Ok(None)
        }
    }

    fn product_by_codes(&self, dy: Source<'_>, w: &Fp8Codes) -> Result<Option<Array>> {
        match &w.transposed {
            Some([codes, ones]) => self.multiply_codes(dy, (codes, ones), Added::default(), None),
            None => Ok(None),
        }
    }

    /// `x wᵀ` of codes, plus summands; `None` if the library has no such product.
    fn multiply_codes(
        &self,
        x: Source<'_>,
        weight: (&Array, &Array),
        Added { bias, plus }: Added<'_>,
        planned: Option<usize>,
    ) -> Result<Option<Array>> {
        let Array { rows, columns, .. } = *x.rows();
        let quantized = self.alloc_quantized(rows.next_multiple_of(ROWS), columns)?;
        let Quantized { codes, scales } = &quantized;
        let padded = self.empty(codes.rows, weight.0.rows)?;
        let (plus, plus_after) = match plus {
            Some(plus) if plus.has_room(codes.rows) => (Some(plus.address()), None),
            other => (None, other),
        };
        // Not every shape can add its bias in the product.
        for (bias, bias_after) in [(bias, None), (None, bias)] {
            let product = Product {
                bias,
                plus,
                planned,
                ..codes_product(&padded, weight, (codes, scales))
            };
            if !self.can_multiply(&product) {
                continue;
            }
            self.quantize_fp8(&quantized, x)?;
            self.multiply(&product)?;
            let out = padded.part(0, rows, padded.columns);
            if let Some(bias) = bias_after {
                self.add_bias(&out, bias)?;
            }
            if let Some(plus) = plus_after {
                self.add(&out, plus)?;
            }
            return Ok(Some(out));
        }
        Ok(None)
    }

    /// The matrix in the engine's type.
    pub(super) fn dequantize_fp8(&self, w: &Fp8Codes) -> Result<Array> {
        let out = self.empty(w.codes.rows, w.codes.columns)?;
        let args = [
            (&out).into(),
            (&w.codes).into(),
            (&w.scales).into(),
            out.columns.into(),
            out.len().into(),
        ];
        self.launch_dequantizing("from_fp8", &out, 1, &args)?;
        Ok(out)
    }
}

/// Whether the norms' quantizing kernels take these matrices.
fn norms_fit(arrays: &[&Array]) -> bool {
    let fits = |array: &&Array| {
        array.element == Element::Bf16 && array.is_vectorized() && array.columns <= WIDEST_NORM
    };
    arrays.iter().all(fits)
}

/// The product of a weight and a matrix, both as codes with the scales of their rows.
fn codes_product<'a>(
    out: &Array,
    (codes, scales): (&'a Array, &'a Array),
    (x, x_scales): (&'a Array, &'a Array),
) -> Product<'a> {
    Product {
        a: codes,
        b: x,
        transposed: [true, false],
        sizes: [codes.rows, x.rows, codes.columns],
        planned: None,
        result: out.address(),
        result_element: out.element,
        scale: 1.0,
        plus: None,
        bias: None,
        scales: Some([scales, x_scales]),
    }
}
