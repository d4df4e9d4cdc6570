//! Operations on single values: casts and sums.

use super::array::{Array, Element};
use super::context::Cuda;
use crate::error::Result;

impl Cuda {
    /// The same values in another type.
    pub(super) fn cast(&self, x: &Array, element: Element) -> Result<Array> {
        if x.element == element {
            return Ok(x.clone());
        }
        if x.element != Element::F32 && element != Element::F32 {
            return self.cast(&self.cast(x, Element::F32)?, element);
        }
        let out = self.empty_of(element, x.rows, x.columns)?;
        let kernel = match element {
            Element::F32 => self.kernel("to_f32", x.element, None),
            _ => self.kernel("from_f32", element, None),
        };
        let args = [(&out).into(), x.into(), x.len().into()];
        self.launch_values(&kernel, x.len(), &args)?;
        Ok(out)
    }

    /// Waits for a matrix's values, and returns them in f32.
    pub(super) fn download_all(&self, x: &Array) -> Result<Vec<f32>> {
        let on_gpu = self.alloc::<f32>(x.len())?;
        let kernel = self.kernel("to_f32", x.element, None);
        let args = [on_gpu.address.into(), x.into(), x.len().into()];
        self.launch_values(&kernel, x.len(), &args)?;
        let mut values = self.fetch(&on_gpu)?;
        values.truncate(x.len());
        Ok(values)
    }

    /// `y += x`
    pub(super) fn add(&self, y: &Array, x: &Array) -> Result<()> {
        let args = [y.into(), x.into(), x.len().into()];
        self.by_values("add", &[y, x], x.len(), &args)
    }

    /// Adds a bias to each row of `y`.
    pub(super) fn add_bias(&self, y: &Array, bias: &Array) -> Result<()> {
        let args = [y.into(), bias.into(), y.columns.into(), y.len().into()];
        self.by_values("add_bias", &[y, bias], y.len(), &args)
    }
}
