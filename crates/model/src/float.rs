//! The float types of weight files: their names, their bytes, and rounding to them.

use half::{bf16, f16};
use rayon::prelude::*;
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

    /// The type with this name in torch.
    ///
    /// # Errors
    /// [`Error::Field`] with `dtype` if no type has the name.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|float| float.name() == name);
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::field("dtype", format!("{name:?} is none of {known}"))
        })
    }

    /// The nearest value of the type; ties go to the even one.
    #[must_use]
    #[inline(always)]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::Fp16 => round_to_fp16(value),
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

    /// The values of a file's bytes.
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

    /// Writes the values of a file's bytes. Like [`Float::values`], but faster, and only for finite
    /// values.
    #[inline(always)]
    pub(crate) fn widen(self, bytes: &[u8], out: &mut [f32]) {
        let pairs = out.iter_mut().zip(bytes.as_chunks::<2>().0);
        match self {
            Self::F32 => {
                for (value, &bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(bytes);
                }
            }
            Self::Fp16 => {
                // The biases of the exponents differ by 112. The product is exact, for subnormal
                // fp16 too.
                let shift = f32::from_bits((127 + 112) << 23);
                for (value, &bytes) in pairs {
                    let bits = u32::from(u16::from_le_bytes(bytes));
                    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * shift;
                    *value = f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16);
                }
            }
            Self::Bf16 => {
                for (value, &bytes) in pairs {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
                }
            }
        }
    }

    /// Whether all values of a file's bytes are finite.
    pub(crate) fn all_finite(self, bytes: &[u8]) -> bool {
        let halves = |exponent: u16| {
            let values = bytes.as_chunks::<2>().0.par_iter();
            values.all(|&b| u16::from_le_bytes(b) & exponent != exponent)
        };
        match self {
            Self::F32 => {
                let values = bytes.as_chunks::<4>().0.par_iter();
                values.all(|&b| f32::from_le_bytes(b).is_finite())
            }
            Self::Fp16 => halves(0x7c00),
            Self::Bf16 => halves(0x7f80),
        }
    }

    /// The bytes of values in a file.
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

/// As `f16::from_f32(value).to_f32()`, without a branch, so that a loop over it is vectorized.
#[inline(always)]
fn round_to_fp16(value: f32) -> f32 {
    const EXPONENT: u32 = 0xff << 23;
    const LARGEST: f32 = 65_504.0;
    let magnitude = value.abs();
    // fp16 has 13 bits less than f32. Next to a power of two that is 2^13 times the value's, f32
    // has the steps of fp16, which are the same for all values below 2^-14.
    let exponent = (magnitude.to_bits() & EXPONENT).clamp((127 - 14) << 23, (127 + 16) << 23);
    let power = f32::from_bits(exponent + (13 << 23));
    let rounded = (magnitude + power) - power;
    let rounded = if rounded > LARGEST {
        f32::INFINITY
    } else {
        rounded
    };
    rounded.copysign(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_fp16_is_that_of_the_type() {
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits).to_f32();
            let middle = value + (f16::from_bits(bits.wrapping_add(1)).to_f32() - value) / 2.0;
            let near = [value, middle].map(|x| [x.next_down(), x, x.next_up()]);
            for value in near.into_iter().flatten().chain([65_519.9, 65_520.0, 1e9]) {
                let want = f16::from_f32(value).to_f32();
                let got = Float::Fp16.round(value);
                assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()));
            }
        }
    }

    #[test]
    fn every_16_bit_value_is_widened_to_itself() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for float in [Float::Fp16, Float::Bf16] {
            let mut widened = vec![0.0; 1 << 16];
            float.widen(&all, &mut widened);
            for (want, got) in float.values(&all).into_iter().zip(widened) {
                assert!(!want.is_finite() || want.to_bits() == got.to_bits());
            }
            let pairs = all.as_chunks::<2>().0.iter();
            let finite = pairs.filter(|pair| float.all_finite(&pair[..])).count();
            let values = float.values(&all);
            assert_eq!(finite, values.iter().filter(|v| v.is_finite()).count());
        }
    }
}
