//! Quantized matrices: packed codes, their scales, and the values that they stand for. NF4 and int8
//! are bitsandbytes', value for value.
//!
//! The reference is bitsandbytes 0.50.2 on CUDA. Its reciprocals are off by up to one unit in the
//! last place, and ours are exact, so that a value within that distance of the border between two
//! codes may get the other code.

pub mod fp8;
pub mod int8;
pub mod nf4;
pub(crate) mod rows;
pub mod scales;

pub use fp8::Fp8;
pub use int8::Int8;
pub use nf4::Nf4;
pub use scales::{Nested, Scales};
