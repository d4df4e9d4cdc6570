//! A base's tensor: in memory, or still in its file.

use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::float::Float;
use crate::mapped::Bytes;
use crate::precision::Precision;
#[cfg(feature = "cuda")]
use crate::quant::nf4;
use crate::weight::{Halves, Weight};

/// A tensor of a folder, and the float type that it has, or had before it was quantized.
pub(crate) struct Stored {
    pub(crate) form: StoredForm,
    pub(crate) float: Float,
}

/// Where a tensor is, and in which form.
pub(crate) enum StoredForm {
    /// In memory, in its precision.
    InMemory(Weight),
    /// In its file. The first use converts it.
    InFile(InFile),
}

/// A tensor in its file, and the precision to convert it to.
pub(crate) struct InFile {
    pub(crate) name: String,
    pub(crate) floats: Floats,
    pub(crate) precision: Precision,
    weight: OnceLock<Weight>,
}

/// Values of a float type, row by row and little-endian.
#[derive(Clone)]
pub(crate) struct Floats {
    pub(crate) float: Float,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Bytes,
}

impl StoredForm {
    pub(crate) fn in_file(name: &str, floats: Floats, precision: Precision) -> Self {
        Self::InFile(InFile {
            name: name.to_owned(),
            floats,
            precision,
            weight: OnceLock::new(),
        })
    }

    pub(crate) fn shape(&self) -> Vec<usize> {
        match self {
            Self::InMemory(weight) => weight.shape(),
            Self::InFile(tensor) => tensor.floats.shape.clone(),
        }
    }

    /// The tensor in its precision.
    ///
    /// # Errors
    /// On the first use of a tensor in its file: values are not finite, or beyond the range of a
    /// type that the precision needs.
    pub(crate) fn weight(&self) -> Result<&Weight> {
        match self {
            Self::InMemory(weight) => Ok(weight),
            Self::InFile(tensor) => match tensor.weight.get() {
                Some(weight) => Ok(weight),
                None => {
                    let weight = tensor.convert()?;
                    Ok(tensor.weight.get_or_init(|| weight))
                }
            },
        }
    }

    /// The tensor in memory. Only 16-bit floats that are used as they are stay mapped.
    pub(crate) fn in_memory(self) -> Result<Self> {
        match self {
            Self::InMemory(weight) => Ok(Self::InMemory(weight)),
            Self::InFile(mut tensor) => match tensor.weight.take() {
                Some(weight) => Ok(Self::InMemory(weight)),
                None => tensor.convert().map(Self::InMemory),
            },
        }
    }

    /// The bytes on a GPU whose activations have `float_bytes` bytes each.
    #[cfg(feature = "cuda")]
    pub(crate) fn device_bytes(&self, float_bytes: u64) -> u64 {
        let tensor = match self {
            Self::InMemory(Weight::Full(tensor)) => {
                return tensor.elem_count() as u64 * float_bytes;
            }
            Self::InMemory(Weight::Half(halves)) => {
                return halves.bytes().len() as u64 / 2 * float_bytes;
            }
            // The codes are also stored transposed.
            Self::InMemory(Weight::Fp8(fp8)) => return (fp8.bytes() + fp8.codes().len()) as u64,
            Self::InMemory(packed) => return packed.bytes() as u64,
            Self::InFile(tensor) => tensor,
        };
        let count: usize = tensor.floats.shape.iter().product();
        let &[rows, _] = tensor.floats.shape.as_slice() else {
            return count as u64 * float_bytes;
        };
        match tensor.precision {
            Precision::F32 | Precision::Bf16 | Precision::Fp16 => count as u64 * float_bytes,
            Precision::Nf4 => nf4::bytes(count) as u64,
            Precision::Int8 => (count + 4 * rows) as u64,
            Precision::Fp8 => (2 * count + 4 * rows) as u64,
        }
    }
}

impl InFile {
    fn convert(&self) -> Result<Weight> {
        let Floats {
            float,
            shape,
            bytes,
        } = &self.floats;
        if !float.all_finite(bytes) {
            return Err(Error::NotFinite(self.name.clone()));
        }
        if let &[rows, columns] = shape.as_slice()
            && *float != Float::F32
            && self.precision.keeps(*float)
        {
            let halves = Halves::shared([rows, columns], *float, bytes.clone());
            return Ok(Weight::Half(halves.into()));
        }
        Weight::new(
            &self.name,
            float.values(bytes),
            shape,
            *float,
            self.precision,
        )
    }
}

impl Floats {
    /// Whether both have the same shape and values.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.shape == other.shape && self.float == other.float && *self.bytes == *other.bytes
    }
}
