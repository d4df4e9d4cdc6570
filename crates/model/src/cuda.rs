//! An NVIDIA GPU: matrices of f32, bf16 or f16 in its memory, products by cuBLASLt, our kernels for
//! the rest.
//!
//! Everything runs in one stream, in the order in which it is asked for, and the host waits only to
//! read. Libraries are looked up at run time. No kernel adds floats in an order that depends on
//! timing, so that a pass repeats bit for bit.
//!
//! The implementations lie in:
//! * `operations`: [`Ops`](crate::ops::Ops), arrays, products and norms
//! * `training`: [`Learn`](crate::ops::training::Learn)
//! * `decoding`: [`Decode`](crate::ops::decoding::Decode)
//! * `launch`, `products`: launches of kernels and of cuBLASLt
//! * `array`: memory; `frozen`, `fp8`: weights by precision; `lora`: LoRA; `heads`: attention
//! * `card`, `opened`: the device; `loading`, `staging`: a base on its way; `bench`, `recorder`: benchmarks

#![allow(unsafe_code)]

mod array;
#[cfg(feature = "bench")]
mod bench;
mod card;
mod decoding;
mod fp8;
mod frozen;
mod heads;
mod launch;
mod loading;
mod lora;
mod opened;
mod operations;
mod products;
#[cfg(feature = "bench")]
mod recorder;
mod staging;
mod training;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError};

use crate::base::Base;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::gpu_limits::GPU_WORKSPACE;
use array::{Array, Buffer, Element};
use loading::Loading;
pub(crate) use opened::Opened;
use products::{Product, Products};
use staging::Staging;

/// A card's operations.
pub(crate) struct Cuda {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    functions: HashMap<String, CudaFunction>,
    products: Products,
    element: Element,
    /// None once the base is there.
    loading: Mutex<Option<Loading>>,
    #[cfg(feature = "bench")]
    recorder: recorder::Recorder,
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
        // It takes time to get memory pinned, and more to compile.
        let (staging, functions) = std::thread::scope(|scope| {
            let staging = scope.spawn(|| Staging::start(&context));
            let functions = launch::compile(&context);
            (staging.join(), functions)
        });
        let staging = staging.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let staging = staging.map_err(|failure| failure.told("staging", ordinal))?;
        let workspace = stream.alloc_zeros::<u8>(GPU_WORKSPACE);
        let workspace = workspace.map_err(|error| failed(ordinal, &error))?;
        let cuda = Self {
            functions: functions?,
            products: Products::new(Buffer::of(workspace, &stream))?,
            context,
            stream,
            element,
            loading: Mutex::new(None),
            #[cfg(feature = "bench")]
            recorder: recorder::Recorder::default(),
        };
        // Memory that the driver has once given stays with the process.
        drop(cuda.room::<u8>(base.device_bytes(element.bytes() as u64) as usize)?);
        cuda.start_loading(staging, base)?;
        Ok(cuda)
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
        let vectorized = arrays.iter().all(|array| array.is_vectorized());
        let kernel = self.kernel(stem, arrays[0].element, Some(vectorized));
        self.launch_rows(&kernel, rows, args)
    }

    /// The same for a kernel of which a block of so many threads has a row.
    fn by_blocks(
        &self,
        stem: &str,
        arrays: &[&Array],
        (rows, threads): (usize, usize),
        args: &[launch::Arg],
    ) -> Result<()> {
        let vectorized = arrays.iter().all(|array| array.is_vectorized());
        let kernel = self.kernel(stem, arrays[0].element, Some(vectorized));
        self.launch(&kernel, (rows, 1), threads, args)
    }

    /// The same for a kernel of values.
    fn by_values(
        &self,
        stem: &str,
        arrays: &[&Array],
        count: usize,
        args: &[launch::Arg],
    ) -> Result<()> {
        let vectorized = arrays.iter().all(|array| array.is_vectorized());
        let kernel = self.kernel(stem, arrays[0].element, Some(vectorized));
        self.launch_values(&kernel, if vectorized { count / 8 } else { count }, args)
    }

    /// `out = scale × x wᵀ (+ bias) (+ plus)`
    fn linear_into(
        &self,
        out: &Array,
        (x, w): (&Array, &Array),
        bias: Option<&Array>,
        plus: Option<&Array>,
        scale: f32,
    ) -> Result<()> {
        self.multiply(&Product {
            a: w,
            b: x,
            transposed: [true, false],
            sizes: [w.rows, x.rows, x.columns],
            result: out.address(),
            result_element: out.element,
            scale,
            plus: plus.map(Array::address),
            bias,
            scales: None,
        })
    }

    /// `out = scale × a b (+ plus)`
    fn product_into(
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
            result: out.address(),
            result_element: out.element,
            scale,
            plus: plus.map(Array::address),
            bias: None,
            scales: None,
        })
    }
}

fn failed(ordinal: usize, error: &DriverError) -> Error {
    Error::device(card::name(ordinal), format!("{error:?}"))
}
