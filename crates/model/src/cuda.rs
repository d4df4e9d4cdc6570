//! A graphics card of NVIDIA: matrices of f32, bf16 or f16 in its memory, products by cuBLASLt, kernels of our own for the rest.
//!
//! Everything runs in one stream, in the order in which it is asked for, and the host waits only to read. Libraries are looked
//! up at run time. No kernel adds floats in an order that depends on timing, so that a pass repeats bit for bit.

#![allow(unsafe_code)]

mod array;
mod card;
mod fp8;
mod frozen;
mod heads;
mod launch;
mod measure;
mod opened;
mod operations;
mod products;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError};

use crate::base::Base;
use crate::dropout::Mask;
use crate::error::{Error, Result};
use crate::float::Float;
use array::{Array, Buffer, Element};
use heads::Layout;
pub(crate) use opened::Opened;
use products::{Product, Products};

/// A card's operations.
pub(crate) struct Cuda {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    functions: HashMap<String, CudaFunction>,
    products: Products,
    element: Element,
    /// None if nobody measures.
    measured: Mutex<Option<Vec<measure::Measured>>>,
    /// None if nobody wants the products once more.
    kept: Mutex<Option<Vec<measure::Kept>>>,
}

/// A buffer of f32 values.
pub(crate) struct Flat(Buffer<f32>);

/// A sum of losses.
pub(crate) struct Sum(Buffer<f64>);

impl Cuda {
    /// A card for a base, with activations of a type.
    pub(crate) fn new(ordinal: usize, float: Float, base: &Base) -> Result<Self> {
        let element = Element::of(float);
        let context = card::open(ordinal)?;
        opened::give_back(&context).map_err(|error| failed(ordinal, &error))?;
        card::check_precision(&context, base.precision())?;
        card::check_memory(&context, base, element.bytes() as u64)?;
        let stream = card::stream(&context)?;
        let functions = launch::compile(&context)?;
        let workspace = stream.alloc_zeros::<u8>(Products::WORKSPACE);
        let workspace = workspace.map_err(|error| failed(ordinal, &error))?;
        Ok(Self {
            functions,
            products: Products::new(Buffer::of(workspace, &stream))?,
            context,
            stream,
            element,
            measured: Mutex::new(None),
            kept: Mutex::new(None),
        })
    }

    /// Counts the most memory in use from now on.
    pub(crate) fn forget_peak(&self) -> Result<()> {
        self.check(opened::forget_most(&self.context))
    }

    fn check<T>(&self, done: std::result::Result<T, DriverError>) -> Result<T> {
        done.map_err(|error| failed(self.context.ordinal(), &error))
    }

    /// Launches a kernel of rows for single values or eights, as the matrices allow.
    fn by_rows(
        &self,
        stem: &str,
        arrays: &[&Array],
        rows: usize,
        args: &[launch::Arg],
    ) -> Result<()> {
        let eights = arrays.iter().all(|array| array.by_eights());
        let kernel = self.kernel(stem, arrays[0].element, Some(eights));
        self.launch_rows(&kernel, rows, args)
    }

    /// The same for a kernel of values.
    fn by_values(
        &self,
        stem: &str,
        arrays: &[&Array],
        count: usize,
        args: &[launch::Arg],
    ) -> Result<()> {
        let eights = arrays.iter().all(|array| array.by_eights());
        let kernel = self.kernel(stem, arrays[0].element, Some(eights));
        self.launch_values(&kernel, if eights { count / 8 } else { count }, args)
    }

    /// `out = scale × x wᵀ + keep × out (+ bias)`
    fn linear_into(
        &self,
        out: (&Array, f32),
        (x, w): (&Array, &Array),
        bias: Option<&Array>,
        scale: f32,
    ) -> Result<()> {
        self.multiply(&Product {
            a: w,
            b: x,
            transposed: [true, false],
            sizes: [w.rows, x.rows, x.columns],
            result: out.0.address(),
            result_element: out.0.element,
            scale,
            keep: out.1,
            bias,
            scales: None,
        })
    }

    /// `out = scale × a b + keep × out`
    fn product_into(&self, out: (&Array, f32), (a, b): (&Array, &Array), scale: f32) -> Result<()> {
        self.multiply(&Product {
            a: b,
            b: a,
            transposed: [false, false],
            sizes: [b.columns, a.rows, a.columns],
            result: out.0.address(),
            result_element: out.0.element,
            scale,
            keep: out.1,
            bias: None,
            scales: None,
        })
    }

    fn masked(
        &self,
        out: &Array,
        base: Option<&Array>,
        x: &Array,
        mask: &Mask,
        layout: &Layout,
    ) -> Result<()> {
        let args = [
            out.into(),
            base.map_or(0_u64.into(), Into::into),
            x.into(),
            layout.places.address.into(),
            mask.key.into(),
            mask.threshold.into(),
            mask.scale.into(),
            x.columns.into(),
            x.len().into(),
        ];
        self.by_values("dropout", &[x, out, base.unwrap_or(x)], x.len(), &args)
    }
}

fn failed(ordinal: usize, error: &DriverError) -> Error {
    Error::device(card::name(ordinal), format!("{error:?}"))
}
