//! A base's tensor in memory: in f32, in 16-bit floats, or quantized.

mod halves;

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::float::Float;
use crate::precision::Precision;
use crate::quant::rows::{Rounding, Rows};
use crate::quant::{Fp8, Int8, Nf4};
pub use halves::Halves;

/// A tensor of a base; clones share it.
#[derive(Clone, Debug)]
pub enum Weight {
    /// In f32, on the CPU.
    Full(Tensor),
    /// In 16-bit floats.
    Half(Arc<Halves>),
    /// In 4-bit normal floats.
    Nf4(Arc<Nf4>),
    /// In 8-bit integers.
    Int8(Arc<Int8>),
    /// In 8-bit floats.
    Fp8(Arc<Fp8>),
}

impl Weight {
    /// Converts the values of the tensor `name` to a precision. Only matrices are converted; other
    /// tensors stay in f32.
    ///
    /// # Errors
    /// [`Error::Format`] if a value is beyond the 16-bit type that the precision rounds through.
    pub fn new(
        name: &str,
        values: Vec<f32>,
        shape: &[usize],
        float: Float,
        precision: Precision,
    ) -> Result<Self> {
        let &[_, columns] = shape else {
            return Self::full(values, shape);
        };
        if let Some(through) = precision.rounded_through()
            && values.iter().any(|&v| through.round(v).is_infinite())
        {
            return Err(precision.out_of_range(name));
        }
        let halves = |float| Self::Half(Halves::round(&values, columns, float).into());
        Ok(match precision {
            Precision::F32 => return Self::full(values, shape),
            Precision::Bf16 => halves(Float::Bf16),
            Precision::Fp16 => halves(Float::Fp16),
            Precision::Nf4 => Self::Nf4(Nf4::quantize(&values, columns, float).into()),
            Precision::Int8 => Self::Int8(Int8::quantize(&values, columns).into()),
            Precision::Fp8 => Self::Fp8(Fp8::quantize(&values, columns).into()),
        })
    }

    pub(crate) fn full(values: Vec<f32>, shape: &[usize]) -> Result<Self> {
        Ok(Self::Full(Tensor::from_vec(values, shape, &Device::Cpu)?))
    }

    /// The shape.
    #[must_use]
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Full(tensor) => tensor.dims().to_vec(),
            Self::Half(halves) => halves.shape().to_vec(),
            Self::Nf4(nf4) => nf4.shape().to_vec(),
            Self::Int8(int8) => int8.shape().to_vec(),
            Self::Fp8(fp8) => fp8.shape().to_vec(),
        }
    }

    /// Its size in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Full(tensor) => 4 * tensor.elem_count(),
            Self::Half(halves) => halves.bytes().len(),
            Self::Nf4(nf4) => nf4.bytes(),
            Self::Int8(int8) => int8.bytes(),
            Self::Fp8(fp8) => fp8.bytes(),
        }
    }

    /// The values in f32. A tensor in f32 is shared, not copied.
    ///
    /// # Errors
    /// None in practice: the tensor library's.
    pub fn dequantized(&self) -> Result<Tensor> {
        match self.rows() {
            Err(tensor) => Ok(tensor.clone()),
            Ok(rows) => {
                let values = rows.all(Rounding::AsQuantized);
                Ok(Tensor::from_vec(values, self.shape(), &Device::Cpu)?)
            }
        }
    }

    /// The rows of a matrix in another form than f32, or else the tensor.
    pub(crate) fn rows(&self) -> std::result::Result<&dyn Rows, &Tensor> {
        match self {
            Self::Full(tensor) => Err(tensor),
            Self::Half(halves) => Ok(&**halves),
            Self::Nf4(nf4) => Ok(&**nf4),
            Self::Int8(int8) => Ok(&**int8),
            Self::Fp8(fp8) => Ok(&**fp8),
        }
    }
}
