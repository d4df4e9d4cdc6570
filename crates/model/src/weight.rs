//! A base's tensor as it is held: in full, in 16-bit floats, or quantized.

mod halves;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::error::Result;
use crate::float::Float;
use crate::precision::Precision;
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

/// What a dequantized value is rounded to before it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// Nothing, as a forward wants it.
    None,
    /// The type that was quantized, as bitsandbytes' dequantization and its backward want it. It is
    /// the same but for NF4.
    AsQuantized,
}

/// A matrix that is held otherwise than in f32, and gives its values row by row.
pub(crate) trait Rows: Sync {
    /// Rows and columns.
    fn size(&self) -> [usize; 2];
    /// Writes a row's values.
    fn row_into(&self, row: usize, out: &mut [f32], rounding: Rounding);

    /// All values, by all cores.
    fn all(&self, rounding: Rounding) -> Vec<f32> {
        let [rows, columns] = self.size();
        let mut values = vec![0.0; rows * columns];
        let each = values.par_chunks_exact_mut(columns.max(1)).enumerate();
        each.with_min_len((1 << 13) / columns.max(1) + 1)
            .for_each(|(row, out)| self.row_into(row, out, rounding));
        values
    }
}

impl Weight {
    /// Holds the values of the tensor `name` in a precision; what is no matrix stays in full.
    ///
    /// # Errors
    /// [`Error::Format`] if a value is beyond the 16-bit type that the precision goes through.
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
        if let Some(through) = precision.through()
            && values.iter().any(|&v| through.round(v).is_infinite())
        {
            return Err(precision.beyond(name));
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

    /// Bytes that it takes.
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

    /// The values that it stands for, in f32: the tensor itself if it is in full.
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

    /// The rows of what is not in full, else the tensor itself.
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
