//! Matrix products by the library.

use super::array::Array;
use super::context::Cuda;
use super::product_plan::Product;
use crate::error::Result;

impl Cuda {
    /// Whether the library has a product.
    pub(super) fn can_multiply(&self, product: &Product<'_>) -> bool {
        self.library.has(product)
    }

    /// Launches a product.
    pub(super) fn multiply(&self, product: &Product<'_>) -> Result<()> {
        if product.sizes.contains(&0) {
            return Ok(());
        }
        self.check(self.context.bind_to_thread())?;
        #[cfg(feature = "bench")]
        let _recording = self.recorder.product(self.stream(), product);
        self.library.multiply(product, self.stream())
    }

    /// `out = scale × x wᵀ (+ bias) (+ plus)`. By the algorithm for `planned` rows of `x`, no row's
    /// result depends on the number of rows.
    pub(super) fn linear_into(
        &self,
        out: &Array,
        (x, w): (&Array, &Array),
        bias: Option<&Array>,
        plus: Option<&Array>,
        scale: f32,
        planned: Option<usize>,
    ) -> Result<()> {
        self.multiply(&Product {
            a: w,
            b: x,
            transposed: [true, false],
            sizes: [w.rows, x.rows, x.columns],
            planned,
            result: out.address(),
            result_element: out.element,
            scale,
            plus: plus.map(Array::address),
            bias,
            scales: None,
        })
    }

    /// `out = scale × a b (+ plus)`
    pub(super) fn product_into(
        &self,
        out: &Array,
        (a, b): (&Array, &Array),
        plus: Option<&Array>,
        scale: f32,
    ) -> Result<()> {
        self.multiply(&Product {
            a: b,
            b: a,
            transposed: [false, false],
            sizes: [b.columns, a.rows, a.columns],
            planned: None,
            result: out.address(),
            result_element: out.element,
            scale,
            plus: plus.map(Array::address),
            bias: None,
            scales: None,
        })
    }
}
