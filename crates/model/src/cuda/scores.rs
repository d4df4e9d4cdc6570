//! The scores of rows of logits, computed on the GPU.

use super::array::Array;
use super::context::Cuda;
use crate::error::Result;
use crate::logprobs::RowScore;
use crate::sampling::Highest;

/// The kernel's threads, as in `scores.cu`.
const THREADS: usize = 512;

impl Cuda {
    /// The scores of the first rows, one for each of these tokens, with the `best` highest logits.
    pub(super) fn scores(
        &self,
        logits: &Array,
        tokens: &[u32],
        best: usize,
    ) -> Result<Vec<RowScore>> {
        let rows = tokens.len();
        let (out, on_gpu) = (self.alloc::<f64>(2 * rows)?, self.bring(tokens)?);
        let args = [
            out.address.into(),
            logits.into(),
            on_gpu.address.into(),
            logits.columns.into(),
        ];
        self.by_blocks("scores", &[logits], (rows, THREADS), &args)?;
        let best = self.best(logits, rows, best)?;
        let sums = self.fetch(&out)?;
        let scores = sums.chunks_exact(2).zip(best).map(|(sums, best)| RowScore {
            log_sum: sums[0],
            chosen: sums[1] as f32,
            best,
        });
        Ok(scores.collect())
    }

    /// The `count` highest logits of the first rows, of equals those of the lower tokens.
    fn best(&self, logits: &Array, rows: usize, count: usize) -> Result<Vec<Vec<(u32, f32)>>> {
        if count == 0 {
            return Ok(vec![Vec::new(); rows]);
        }
        let told = self.highest(logits, rows)?;
        let count = count.min(logits.columns);
        let best = told.iter().map(|told| told.as_ref()?.best(count));
        if let Some(best) = best.collect() {
            return Ok(best);
        }
        // Too many logits of a row are equal, or it has a NaN.
        let all = self.read_rows(logits, rows)?;
        let best = all.iter().zip(told).map(|(all, told)| {
            let told = told.as_ref().and_then(|told: &Highest| told.best(count));
            told.unwrap_or_else(|| RowScore::of(all, 0, count).best)
        });
        Ok(best.collect())
    }
}
