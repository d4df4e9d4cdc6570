//! Counter-based random numbers: every value is a pure function of a key and an index, so nothing
//! depends on order.

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64 bits in which every bit
/// depends on all.
#[inline(always)]
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// SplitMix64's increment: 2^64 divided by the golden ratio, odd.
pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

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

/// The `index`-th value of the key's stream.
#[inline(always)]
pub(crate) fn at(key: u64, index: u64) -> u64 {
    mix(key.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// The `index`-th value of the key's stream as a number in [0, 1) with 53 bits.
#[inline(always)]
pub(crate) fn unit(key: u64, index: u64) -> f64 {
    (at(key, index) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}
