//! The order of rows in training: a seeded permutation that needs no memory, so that a reader can
//! start at any position.
//!
//! The algorithm is a contract, because a resumed training repeats it. Let `h` be the smallest
//! whole number with `4^h >= max(rows, 2)`. A Feistel network of eight rounds over `2h` bits maps
//! the position, split into halves `(left, right)` of `h` bits, by `(left, right) → (right, left ^
//! (mix(right ^ key[round]) >> (64 - h)))`. While the result is not below `rows`, it is mapped
//! again (cycle walking; below four times on average, because `4^h < 4 · rows`). The keys are eight
//! outputs of SplitMix64 started at `mix(seed) ^ mix(epoch + GOLDEN)`, wrapping. `mix` is
//! SplitMix64's finalizer.

use togi_common::random::{GOLDEN, mix, nth};

const ROUNDS: usize = 8;

/// A permutation of the rows `0..rows`, determined by a seed and an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permutation {
    rows: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// Returns the permutation of `rows` rows in one epoch.
    pub fn new(rows: u64, seed: u64, epoch: u64) -> Self {
        let bits = u64::BITS - rows.max(2).saturating_sub(1).leading_zeros();
        let key = mix(seed) ^ mix(epoch.wrapping_add(GOLDEN));
        let keys = std::array::from_fn(|round| nth(key, round as u64));
        Self {
            rows,
            half_bits: bits.div_ceil(2),
            keys,
        }
    }

    /// The number of rows.
    pub fn len(&self) -> u64 {
        self.rows
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Returns the row at a position, or nothing past the end.
    pub fn at(&self, position: u64) -> Option<u64> {
        if position >= self.rows {
            return None;
        }
        let mut row = self.encrypt(position);
        while row >= self.rows {
            row = self.encrypt(row);
        }
        Some(row)
    }

    /// Returns the rows from a position on.
    pub fn from(&self, position: u64) -> impl Iterator<Item = u64> + '_ {
        (position..self.rows).filter_map(|position| self.at(position))
    }

    fn encrypt(&self, value: u64) -> u64 {
        let mask = if self.half_bits == 32 {
            u64::from(u32::MAX)
        } else {
            (1 << self.half_bits) - 1
        };
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (
                right,
                left ^ (mix(right ^ key) >> (u64::BITS - self.half_bits)),
            );
        }
        (left << self.half_bits) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_comes_once() {
        for rows in [0, 1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 15_015] {
            let mut seen: Vec<u64> = Permutation::new(rows, 42, 3).from(0).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..rows), "{rows} rows");
        }
    }

    #[test]
    fn the_order_is_pinned() {
        let order = |seed, epoch| {
            Permutation::new(10, seed, epoch)
                .from(0)
                .collect::<Vec<_>>()
        };
        // Computed by a second implementation in Python, written from the description above.
        assert_eq!(order(0, 0), [0, 7, 6, 1, 9, 2, 3, 4, 8, 5]);
        assert_eq!(order(42, 1), [6, 9, 7, 8, 0, 3, 4, 5, 1, 2]);
        assert_ne!(order(0, 0), order(0, 1));
        assert_ne!(order(0, 0), order(1, 0));
    }

    #[test]
    fn reading_resumes_anywhere() {
        let order = Permutation::new(100, 7, 0);
        let all: Vec<u64> = order.from(0).collect();
        assert_eq!(order.from(37).collect::<Vec<_>>(), all[37..]);
        assert_eq!(order.at(100), None);
        assert_eq!(order.at(u64::MAX), None);
    }

    #[test]
    fn the_largest_counts_work() {
        for rows in [u64::from(u32::MAX), 1 << 62, u64::MAX] {
            let order = Permutation::new(rows, 1, 1);
            assert!(order.at(rows - 1).is_some_and(|row| row < rows));
        }
    }

    #[test]
    fn neighbours_are_scattered() {
        let rows = 10_000;
        let order: Vec<u64> = Permutation::new(rows, 5, 0).from(0).collect();
        let steps: u64 = order.windows(2).map(|pair| pair[0].abs_diff(pair[1])).sum();
        let mean = steps as f64 / (rows - 1) as f64;
        // In a uniform permutation the mean distance is a third of the rows.
        assert!((mean / rows as f64 - 1.0 / 3.0).abs() < 0.02, "{mean}");
    }
}
