//! A base's tensor as it is held: in full, or quantized.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::float::Float;
use crate::precision::Precision;
use crate::quant::{Int8, Nf4};

/// A tensor of a base; clones share it.
#[derive(Clone, Debug)]
pub enum Weight {
    /// In f32, on the CPU.
    Full(Tensor),
    /// In 4-bit normal floats.
    Nf4(Arc<Nf4>),
    /// In 8-bit integers.
    Int8(Arc<Int8>),
}

impl Weight {
    /// Holds the values of the tensor `name` in a precision; what is no matrix stays in full.
    ///
    /// # Errors
    /// [`Error::Precision`] if this build cannot hold it so; [`Error::Format`] if a value is beyond fp16 and int8 is asked.
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
        match precision {
            Precision::F32 => Self::full(values, shape),
            Precision::Nf4 => Ok(Self::Nf4(Arc::new(Nf4::quantize(&values, columns, float)))),
            Precision::Int8 if values.iter().any(|&v| Float::Fp16.round(v).is_infinite()) => {
                Err(Error::format(
                    format!("tensor {name}"),
                    "has a value beyond fp16, as int8 needs it",
                ))
            }
            Precision::Int8 => Ok(Self::Int8(Arc::new(Int8::quantize(&values, columns)))),
            Precision::Bf16 | Precision::Fp16 | Precision::Fp8 => Err(Error::Precision {
                precision,
                reason: "is not built yet; f32, int8 and nf4 are".into(),
            }),
        }
    }

    pub(crate) fn full(values: Vec<f32>, shape: &[usize]) -> Result<Self> {
        Ok(Self::Full(Tensor::from_vec(values, shape, &Device::Cpu)?))
    }

    /// The shape.
    #[must_use]
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Full(tensor) => tensor.dims().to_vec(),
            Self::Nf4(nf4) => nf4.shape().to_vec(),
            Self::Int8(int8) => int8.shape().to_vec(),
        }
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Full(tensor) => 4 * tensor.elem_count(),
            Self::Nf4(nf4) => nf4.bytes(),
            Self::Int8(int8) => int8.bytes(),
        }
    }

    /// The values that it stands for, in f32: the tensor itself if it is in full.
    ///
    /// # Errors
    /// None in practice: the tensor library's.
    pub fn dequantized(&self) -> Result<Tensor> {
        let values = match self {
            Self::Full(tensor) => return Ok(tensor.clone()),
            Self::Nf4(nf4) => nf4.dequantized(),
            Self::Int8(int8) => int8.dequantized(),
        };
        Ok(Tensor::from_vec(values, self.shape(), &Device::Cpu)?)
    }
}
