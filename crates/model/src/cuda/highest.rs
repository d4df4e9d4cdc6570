//! The highest logits of each row, chosen on the GPU.

use rayon::prelude::*;

use super::array::{Array, Element};
use super::context::Cuda;
use super::results::PinnedCopy;
use crate::error::Result;
use crate::sampling::Highest;

/// The most logits of a row that are told, and the kernel's threads, as in `highest.cu`.
const MOST: usize = 256;
const THREADS: usize = 512;
/// Words that the kernel writes for each row: how many are told, whether one is NaN, and pairs.
const WORDS: usize = 2 + 2 * MOST;

impl Cuda {
    /// The highest logits of the first rows; `None` for a row whose border has too many equals, or
    /// that has a NaN.
    pub(super) fn highest(&self, logits: &Array, rows: usize) -> Result<Vec<Option<Highest>>> {
        self.finish_highest(self.copy_highest(logits, rows)?)
    }

    /// Begins to choose the highest logits of the first rows.
    pub(super) fn copy_highest(&self, logits: &Array, rows: usize) -> Result<PinnedCopy> {
        let out = self.empty_of(Element::F32, rows, WORDS)?;
        let args = [(&out).into(), logits.into(), logits.columns.into()];
        self.by_blocks("highest", &[logits], (rows, THREADS), &args)?;
        self.begin_copy(&out)
    }

    /// Waits for the highest logits.
    pub(super) fn finish_highest(&self, copy: PinnedCopy) -> Result<Vec<Option<Highest>>> {
        self.finish_copy(copy, |values| {
            let rows = values.par_chunks(WORDS).map(|row| {
                let [told, flawed] = [row[0], row[1]].map(f32::to_bits);
                let pairs = row[2..].chunks_exact(2).take(told as usize);
                let pairs = pairs.map(|pair| (pair[0].to_bits(), pair[1]));
                (told > 0 && flawed == 0).then(|| Highest::new(pairs.collect()))
            });
            rows.collect()
        })
    }
}
