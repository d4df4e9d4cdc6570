//! Weights in 8-bit floats on the card, and products of their codes by the codes of activations and
//! gradients, which get a scale a row. A card, or a shape, that has no such product multiplies by
//! the dequantized weight.

use super::Cuda;
use super::array::{Array, Element, ROWS};
use super::launch::{Arg, activation_id};
use super::products::Product;
use crate::activation::Activation;
use crate::error::Result;
use crate::ops::Norm;
use crate::quant::Fp8;

/// Threads of the quantizing kernel at most, and packs of eight values that each can keep.
const THREADS: usize = 384;
const PACKS: [usize; 4] = [1, 2, 4, 8];
/// Columns of the widest row that it keeps.
const WIDEST: usize = 8 * 8 * THREADS;
/// Threads of a row's norm, and columns of the widest row that is normed and quantized at once.
const NORM_THREADS: usize = 128;
const WIDEST_NORM: usize = 3 * 8 * NORM_THREADS;
/// Rows of a product that is asked for to learn whether there are any.
const MANY: usize = 4096;

/// Codes, and a scale for each row.
pub(crate) struct Eighths {
    /// (outputs, inputs)
    codes: Array,
    /// (1, outputs)
    scales: Array,
    /// Whether the forward multiplies codes.
    forward: bool,
    /// For a backward that does: the transposed codes, (inputs, outputs), because only codes that
    /// lie along the depth can be multiplied, and as many ones as there are inputs.
    turned: Option<[Array; 2]>,
}

/// A matrix's codes, and a scale for each row.
struct Quantized {
    codes: Array,
    scales: Array,
}

/// What is added to a product: a bias to each row, and another matrix.
#[derive(Clone, Copy, Default)]
pub(super) struct Added<'a> {
    pub(super) bias: Option<&'a Array>,
    pub(super) plus: Option<&'a Array>,
}

/// What becomes codes.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// A matrix as it is.
    Plain(&'a Array),
    /// Its columns times factors.
    Scaled(&'a Array, &'a Array),
    /// Its activation.
    Activated(&'a Array, Activation),
    /// A gradient times the activation's slope at a matrix, and its columns times factors.
    Sloped(&'a Array, &'a Array, Activation, &'a Array),
    /// Its norm, which is written to the first matrix.
    Normed(&'a Array, &'a Array, &'a Norm<Array>),
    /// The gradient of a norm of a matrix, added to the first matrix, and the columns of that times
    /// factors.
    NormedBack([&'a Array; 3], &'a Norm<Array>, &'a Array),
}

impl<'a> Source<'a> {
    /// A matrix of the shape.
    fn rows(self) -> &'a Array {
        match self {
            Self::Plain(x) | Self::Scaled(x, _) | Self::Activated(x, _) => x,
            Self::Sloped(dy, ..) => dy,
            Self::Normed(out, ..) | Self::NormedBack([out, ..], ..) => out,
        }
    }
}

impl Cuda {
    pub(super) fn eighths(&self, fp8: &Fp8) -> Result<Eighths> {
        let [rows, columns] = fp8.shape();
        let codes = self.adopt_bytes(Element::E4m3, fp8.codes(), rows, columns)?;
        let scales = self.upload_as(Element::F32, fp8.scales(), 1, rows)?;
        self.eighths_of(codes, scales)
    }

    fn eighths_of(&self, codes: Array, scales: Array) -> Result<Eighths> {
        let mut eighths = Eighths {
            codes,
            scales,
            forward: false,
            turned: None,
        };
        let (rows, columns) = (eighths.codes.rows, eighths.codes.columns);
        let fits = |size: usize| size.is_multiple_of(ROWS) && size <= WIDEST;
        if self.element != Element::Bf16 || !fits(rows) || !fits(columns) {
            return Ok(eighths);
        }
        let out = self.empty(1, 1)?;
        let x = self.empty_of(Element::E4m3, 1, 1)?;
        let can_multiply = |codes: &Array, scales: &Array| {
            let x = x.part(0, MANY, codes.columns);
            self.can_multiply(&of_codes(&out, (codes, scales), (&x, scales)))
        };
        let Eighths { codes, scales, .. } = &eighths;
        let forward = can_multiply(codes, scales);
        let turned = self.empty_of(Element::E4m3, columns, rows)?;
        let ones = self.upload_as(Element::F32, &vec![1.0; columns], 1, columns)?;
        let mut back = None;
        if can_multiply(&turned, &ones) {
            let args = [(&turned).into(), codes.into(), rows.into(), columns.into()];
            let grid = (columns.div_ceil(64), rows.div_ceil(64));
            self.launch("transpose_codes", grid, 256, &args)?;
            back = Some([turned, ones]);
        }
        (eighths.forward, eighths.turned) = (forward, back);
        Ok(eighths)
    }

    /// Whether the quantizing kernel takes rows of so many columns.
    pub(super) fn quantizes_fp8(&self, columns: usize) -> bool {
        columns.is_multiple_of(8) && columns <= WIDEST
    }

    /// Quantizes a weight.
    pub(super) fn weight_to_fp8(&self, raw: &Array) -> Result<Eighths> {
        let quantized = self.room_for_codes(raw.rows, raw.columns)?;
        self.to_fp8(&quantized, Source::Plain(raw))?;
        self.eighths_of(quantized.codes, quantized.scales)
    }

    fn room_for_codes(&self, rows: usize, columns: usize) -> Result<Quantized> {
        Ok(Quantized {
            codes: self.empty_of(Element::E4m3, rows, columns)?,
            scales: self.empty_of(Element::F32, 1, rows)?,
        })
    }

    /// Quantizes rows, and fills the codes up with zeros.
    fn to_fp8(&self, to: &Quantized, from: Source<'_>) -> Result<()> {
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
            Source::Sloped(dy, x, kind, factors) => {
                args.extend([Arg::from(x), dy.into(), factors.into()]);
                args.push(activation_id(kind).into());
                "activate_backward_to_fp8"
            }
            Source::Normed(out, x, norm) => {
                args.extend([out, x, &norm.weight, &norm.bias].map(Arg::from));
                args.push(norm.eps.into());
                "norm_to_fp8"
            }
            Source::NormedBack(arrays, norm, factors) => {
                args.extend(arrays.map(Arg::from));
                args.extend([&norm.weight, factors].map(Arg::from));
                args.push(norm.eps.into());
                "norm_backward_to_fp8"
            }
        };
        args.extend([x.rows, x.columns].map(Arg::from));
        if let Source::Normed(..) | Source::NormedBack(..) = from {
            let kernel = self.kernel(name, x.element, None);
            return self.launch(&kernel, (codes.rows, 1), NORM_THREADS, &args);
        }
        let packs = x.columns / 8;
        let each = PACKS
            .into_iter()
            .find(|each| packs.div_ceil(*each) <= THREADS);
        let each = each.unwrap_or(PACKS[3]);
        let kernel = format!("{name}_{}_{each}", x.element.name());
        let threads = packs.div_ceil(each).next_multiple_of(32);
        self.launch(&kernel, (codes.rows, 1), threads, &args)
    }

    /// `x wᵀ`, and what is added.
    pub(super) fn fp8_linear(&self, x: &Array, w: &Eighths, added: Added<'_>) -> Result<Array> {
        if let Some(out) = self.codes_linear(Source::Plain(x), w, added)? {
            return Ok(out);
        }
        let w = self.expand_fp8(w)?;
        let out = self.empty(x.rows, w.rows)?;
        self.linear_into(&out, (x, &w), added.bias, added.plus, 1.0)?;
        Ok(out)
    }

    /// The same of the activation of `x`, which is not formed; none if there is no product of
    /// codes.
    pub(super) fn fp8_activated(
        &self,
        (x, kind): (&Array, Activation),
        w: &Eighths,
        added: Added<'_>,
    ) -> Result<Option<Array>> {
        self.codes_linear(Source::Activated(x, kind), w, added)
    }

    /// `dy w`: the scales of w's rows go into dy before it is quantized, so that the same codes are
    /// multiplied as forward.
    pub(super) fn fp8_product(&self, dy: &Array, w: &Eighths) -> Result<Array> {
        if let Some(out) = self.codes_product(Source::Scaled(dy, &w.scales), w)? {
            return Ok(out);
        }
        let w = self.expand_fp8(w)?;
        let out = self.empty(dy.rows, w.columns)?;
        self.product_into(&out, (dy, &w), None, 1.0)?;
        Ok(out)
    }

    /// The same of `dy` times the activation's slope at `x`, which is not formed; none if there is
    /// no product of codes.
    pub(super) fn fp8_sloped(
        &self,
        dy: &Array,
        (x, kind): (&Array, Activation),
        w: &Eighths,
    ) -> Result<Option<Array>> {
        self.codes_product(Source::Sloped(dy, x, kind, &w.scales), w)
    }

    /// The norm of `x` and `norm wᵀ`, and what is added; none if there is no product of codes.
    pub(super) fn fp8_normed(
        &self,
        (x, norm): (&Array, &Norm<Array>),
        w: &Eighths,
        bias: Option<&Array>,
    ) -> Result<Option<(Array, Array)>> {
        if !norms_fit(&[x, &norm.weight, &norm.bias]) {
            return Ok(None);
        }
        let normed = self.empty(x.rows, x.columns)?;
        let added = Added { bias, plus: None };
        let y = self.codes_linear(Source::Normed(&normed, x, norm), w, added)?;
        Ok(y.map(|y| (normed, y)))
    }

    /// Adds the gradient of a norm to `dx`, and multiplies what it becomes as
    /// [`Cuda::fp8_product`]; none if there is no product of codes, and nothing is added then.
    pub(super) fn fp8_normed_back(
        &self,
        (dx, dy): (&Array, &Array),
        (x, norm): (&Array, &Norm<Array>),
        w: &Eighths,
    ) -> Result<Option<Array>> {
        if !norms_fit(&[dx, dy, x, &norm.weight]) {
            return Ok(None);
        }
        self.codes_product(Source::NormedBack([dx, dy, x], norm, &w.scales), w)
    }

    fn codes_linear(&self, x: Source<'_>, w: &Eighths, added: Added<'_>) -> Result<Option<Array>> {
        if w.forward {
            self.product_of_codes(x, (&w.codes, &w.scales), added)
        } else {
            Ok(None)
        }
    }

    fn codes_product(&self, dy: Source<'_>, w: &Eighths) -> Result<Option<Array>> {
        match &w.turned {
            Some([turned, ones]) => self.product_of_codes(dy, (turned, ones), Added::default()),
            None => Ok(None),
        }
    }

    /// `x wᵀ` of codes, and what is added; none if the library has no such product.
    fn product_of_codes(
        &self,
        x: Source<'_>,
        weight: (&Array, &Array),
        Added { bias, plus }: Added<'_>,
    ) -> Result<Option<Array>> {
        let Array { rows, columns, .. } = *x.rows();
        let quantized = self.room_for_codes(rows.next_multiple_of(ROWS), columns)?;
        let Quantized { codes, scales } = &quantized;
        let out = self.empty(codes.rows, weight.0.rows)?;
        let (plus, plus_after) = match plus {
            Some(plus) if plus.has_room(codes.rows) => (Some(plus.address()), None),
            other => (None, other),
        };
        // Not every shape can have its bias inside.
        for (bias, bias_after) in [(bias, None), (None, bias)] {
            let product = Product {
                bias,
                plus,
                ..of_codes(&out, weight, (codes, scales))
            };
            if !self.can_multiply(&product) {
                continue;
            }
            self.to_fp8(&quantized, x)?;
            self.multiply(&product)?;
            let out = out.part(0, rows, out.columns);
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

    fn add_bias(&self, y: &Array, bias: &Array) -> Result<()> {
        let args = [y.into(), bias.into(), y.columns.into(), y.len().into()];
        self.by_values("add_bias", &[y, bias], y.len(), &args)
    }

    /// The matrix in the engine's type.
    pub(super) fn expand_fp8(&self, w: &Eighths) -> Result<Array> {
        let out = self.empty(w.codes.rows, w.codes.columns)?;
        let args = [
            (&out).into(),
            (&w.codes).into(),
            (&w.scales).into(),
            out.columns.into(),
            out.len().into(),
        ];
        self.launch_expanding("from_fp8", &out, 1, &args)?;
        Ok(out)
    }
}

/// Whether the norms' quantizing kernels take rows of these matrices.
fn norms_fit(arrays: &[&Array]) -> bool {
    let fits = |array: &&Array| {
        array.element == Element::Bf16 && array.is_vectorized() && array.columns <= WIDEST_NORM
    };
    arrays.iter().all(fits)
}

/// A weight and a matrix as codes with the scales of their rows, to be multiplied.
fn of_codes<'a>(
    out: &Array,
    (codes, scales): (&'a Array, &'a Array),
    (x, x_scales): (&'a Array, &'a Array),
) -> Product<'a> {
    Product {
        a: codes,
        b: x,
        transposed: [true, false],
        sizes: [codes.rows, x.rows, codes.columns],
        result: out.address(),
        result_element: out.element,
        scale: 1.0,
        plus: None,
        bias: None,
        scales: Some([scales, x_scales]),
    }
}
