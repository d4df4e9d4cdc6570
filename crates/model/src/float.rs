//! The float types of weight files: their names, their bytes, and what rounding to them loses.

use half::{bf16, f16};
use safetensors::tensor::Dtype;

use crate::error::{Error, Result};

/// A float type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// 32 bits.
    F32,
    /// 16 bits with five of exponent.
    Fp16,
    /// 16 bits with eight of exponent.
    Bf16,
}

impl Float {
    const ALL: [Self; 3] = [Self::F32, Self::Fp16, Self::Bf16];

    /// Its name in torch.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Fp16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// The type of that name in torch.
    ///
    /// # Errors
    /// [`Error::Field`] with `dtype`: none has the name.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|float| float.name() == name);
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::field("dtype", format!("{name:?} is none of {known}"))
        })
    }

    /// The nearest value that the type has; of two equally near, the even one.
    #[must_use]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::Fp16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }

    pub(crate) fn from_dtype(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::Fp16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Fp16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// Values from a file's bytes.
    pub(crate) fn values(self, bytes: &[u8]) -> Vec<f32> {
        let pairs = bytes.as_chunks::<2>().0.iter();
        match self {
            Self::F32 => {
                let values = bytes.as_chunks::<4>().0.iter();
                values.map(|&b| f32::from_le_bytes(b)).collect()
            }
            Self::Fp16 => pairs.map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Self::Bf16 => pairs.map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        }
    }

    /// A file's bytes from values.
    pub(crate) fn bytes(self, values: &[f32]) -> Vec<u8> {
        let values = values.iter();
        match self {
            Self::F32 => values.flat_map(|value| value.to_le_bytes()).collect(),
            Self::Fp16 => values
                .flat_map(|&value| f16::from_f32(value).to_le_bytes())
                .collect(),
            Self::Bf16 => values
                .flat_map(|&value| bf16::from_f32(value).to_le_bytes())
                .collect(),
        }
    }
}
