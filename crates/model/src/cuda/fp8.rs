//! Weights in 8-bit floats on the card, and products of their codes by the codes of activations and gradients, which get a scale
//! a row. A card, or a shape, that has no such product multiplies by the dequantized weight.

use super::Cuda;
use super::array::{Array, Element};
use super::products::Product;
use crate::error::{Error, Result};
use crate::quant::Fp8;

/// What the matrix units count 8-bit values by.
const MULTIPLE: usize = 16;
/// Columns of the widest row that the quantizing kernel keeps.
const WIDEST: usize = 16_384;

/// Codes, and a scale for each row.
pub(crate) struct Eighths {
    /// (outputs, inputs)
    codes: Array,
    /// (1, outputs)
    scales: Array,
    /// For products of codes: the transposed codes, (inputs, outputs), because only codes that lie along the depth can be
    /// multiplied, and as many ones as there are inputs.
    turned: Option<[Array; 2]>,
}

/// A matrix's codes, and a scale for each row.
struct Quantized {
    codes: Array,
    scales: Array,
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
            turned: None,
        };
        let (rows, columns) = (eighths.codes.rows, eighths.codes.columns);
        let fits = |size: usize| size.is_multiple_of(MULTIPLE) && size <= WIDEST;
        if self.element != Element::Bf16 || !fits(rows) || !fits(columns) {
            return Ok(eighths);
        }
        let turned = self.empty_of(Element::E4m3, columns, rows)?;
        let ones = self.upload_as(Element::F32, &vec![1.0; columns], 1, columns)?;
        let Eighths { codes, scales, .. } = &eighths;
        let some = self.empty(MULTIPLE, rows.max(columns))?;
        let can_multiply = |weight: (&Array, &Array), bias| {
            let x = self.empty_of(Element::E4m3, MULTIPLE, weight.0.columns)?;
            let product = of_codes(&some, weight, (&x, weight.1), bias);
            Ok::<_, Error>(self.can_multiply(&product))
        };
        if can_multiply((codes, scales), Some(scales))? && can_multiply((&turned, &ones), None)? {
            let args = [(&turned).into(), codes.into(), rows.into(), columns.into()];
            let grid = (columns.div_ceil(64), rows.div_ceil(64));
            self.launch("turn_codes", grid, 256, &args)?;
            eighths.turned = Some([turned, ones]);
        }
        Ok(eighths)
    }

    /// Whether the quantizing kernel takes rows of so many columns.
    pub(super) fn quantizes_fp8(&self, columns: usize) -> bool {
        columns.is_multiple_of(8) && columns <= WIDEST
    }

    /// Quantizes a weight.
    pub(super) fn weight_to_fp8(&self, raw: &Array) -> Result<Eighths> {
        let Quantized { codes, scales } = self.to_fp8(raw, None, raw.rows)?;
        self.eighths_of(codes, scales)
    }

    /// Quantizes rows, after a multiplication of their columns by factors if there are any, and fills them up with zeros.
    fn to_fp8(&self, x: &Array, factors: Option<&Array>, rows: usize) -> Result<Quantized> {
        let codes = self.empty_of(Element::E4m3, rows, x.columns)?;
        let scales = self.empty_of(Element::F32, 1, rows)?;
        let args = [
            (&codes).into(),
            (&scales).into(),
            x.into(),
            factors.map_or(0_u64.into(), Into::into),
            x.rows.into(),
            x.columns.into(),
        ];
        let kernel = self.kernel("to_fp8", x.element, None);
        self.launch(&kernel, (rows, 1), 256, &args)?;
        Ok(Quantized { codes, scales })
    }

    /// `x wᵀ + bias`
    pub(super) fn fp8_linear(&self, x: &Array, w: &Eighths, bias: Option<&Array>) -> Result<Array> {
        if w.turned.is_some() {
            return self.product_of_codes(x, None, (&w.codes, &w.scales), bias);
        }
        let w = self.expand_fp8(w)?;
        let out = self.empty(x.rows, w.rows)?;
        self.linear_into(&out, (x, &w), bias, None, 1.0)?;
        Ok(out)
    }

    /// `dy w`: the scales of w's rows go into dy before it is quantized, so that the same codes are multiplied as forward.
    pub(super) fn fp8_product(&self, dy: &Array, w: &Eighths) -> Result<Array> {
        if let Some([turned, ones]) = &w.turned {
            return self.product_of_codes(dy, Some(&w.scales), (turned, ones), None);
        }
        let expanded = self.expand_fp8(w)?;
        let out = self.empty(dy.rows, expanded.columns)?;
        self.product_into(&out, (dy, &expanded), None, 1.0)?;
        Ok(out)
    }

    /// `(x ∘ factors) wᵀ + bias` of codes.
    fn product_of_codes(
        &self,
        x: &Array,
        factors: Option<&Array>,
        weight: (&Array, &Array),
        bias: Option<&Array>,
    ) -> Result<Array> {
        let rows = x.rows.next_multiple_of(MULTIPLE);
        let Quantized { codes, scales } = self.to_fp8(x, factors, rows)?;
        let out = self.empty(codes.rows, weight.0.rows)?;
        self.multiply(&of_codes(&out, weight, (&codes, &scales), bias))?;
        Ok(out.part(0, x.rows, out.columns))
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
        let kernel = self.kernel("from_fp8", out.element, None);
        self.launch_values(&kernel, out.len(), &args)?;
        Ok(out)
    }
}

/// A weight and a matrix as codes with the scales of their rows, to be multiplied.
fn of_codes<'a>(
    out: &Array,
    (codes, scales): (&'a Array, &'a Array),
    (x, x_scales): (&'a Array, &'a Array),
    bias: Option<&'a Array>,
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
        bias,
        scales: Some([scales, x_scales]),
    }
}
