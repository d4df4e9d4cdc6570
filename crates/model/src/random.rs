//! Keys of random streams, and their numbers in [0, 1).

use togi_common::random::{GOLDEN, mix, nth};

/// Derives a key from another and one more value.
#[inline(always)]
pub(crate) fn derive(key: u64, value: u64) -> u64 {
    mix(key.wrapping_add(GOLDEN) ^ mix(value.wrapping_add(GOLDEN)))
}

/// Derives a key from a name.
pub(crate) fn derive_name(key: u64, name: &str) -> u64 {
    name.bytes()
        .fold(derive(key, name.len() as u64), |key, byte| {
            derive(key, u64::from(byte))
        })
}

/// The `index`-th value of the key's stream as a number in [0, 1) with 53 bits.
#[inline(always)]
pub(crate) fn unit(key: u64, index: u64) -> f64 {
    (nth(key, index) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}
