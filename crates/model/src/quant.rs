//! Quantized matrices: packed bytes, their scales, and the way back. NF4 and int8 are
//! bitsandbytes', value for value.
//!
//! The reference is bitsandbytes 0.50.2 on CUDA. Its reciprocals are approximate to one unit in the
//! last place there, and exact here, so a value within that of the border between two codes may get
//! the other one.

pub mod fp8;
pub mod int8;
pub mod nf4;
pub mod scales;

pub use fp8::Fp8;
pub use int8::Int8;
pub use nf4::Nf4;
pub use scales::{Nested, Scales};

use crate::error::{Error, Result};

/// The largest magnitude, 0 of nothing.
fn absmax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

/// Checks that a part of a quantized matrix has as many values as its shape needs.
fn check_len(part: &str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        Ok(())
    } else {
        Err(Error::format(
            part,
            format!("has {got} values, expected {expected}"),
        ))
    }
}
