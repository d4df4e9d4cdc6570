//! How records are cut into passes through the device. Gradients are sums, so that the cut changes
//! memory and time, and what is learned only by rounding.

use std::ops::Range;

/// What limits a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The micro-batch, however many tokens it has.
    ByRecords,
    /// The tokens. A record that is longer has a pass of its own.
    ByTokens(usize),
}

impl Cut {
    /// Cuts a window of records of these lengths into passes.
    ///
    /// A cut by tokens makes as few passes as it can, and none of them has more tokens than a
    /// micro-batch of the window's longest record.
    pub(crate) fn window(self, lengths: &[usize], micro_batch: usize) -> Vec<Range<usize>> {
        match self {
            Self::ByRecords => {
                let starts = (0..lengths.len()).step_by(micro_batch.max(1));
                starts
                    .map(|start| start..lengths.len().min(start + micro_batch))
                    .collect()
            }
            Self::ByTokens(most) => {
                let longest = lengths.iter().copied().max().unwrap_or(0);
                by_tokens(lengths, most.min(micro_batch.saturating_mul(longest)))
            }
        }
    }

    /// Cuts a batch that a caller packed.
    pub(crate) fn batch(self, lengths: &[usize]) -> Vec<Range<usize>> {
        match self {
            Self::ByRecords => std::iter::once(0..lengths.len()).collect(),
            Self::ByTokens(most) => by_tokens(lengths, most),
        }
    }
}

/// The fewest passes of at most `most` tokens. Of these cuts, the one whose largest pass is the
/// smallest. It depends on the lengths alone, so that it repeats.
fn by_tokens(lengths: &[usize], most: usize) -> Vec<Range<usize>> {
    let mut passes = filled(lengths, most);
    let total = lengths.iter().sum();
    let (mut too_small, mut enough) = (0, most.min(total));
    while enough - too_small > 1 {
        let middle = too_small + (enough - too_small) / 2;
        let smaller = filled(lengths, middle);
        if smaller.len() == passes.len() {
            (passes, enough) = (smaller, middle);
        } else {
            too_small = middle;
        }
    }
    passes
}

/// Fills each pass with as many records as fit into `most` tokens.
fn filled(lengths: &[usize], most: usize) -> Vec<Range<usize>> {
    let mut passes: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (record, length) in lengths.iter().enumerate() {
        match passes.last_mut() {
            Some(records) if tokens + length <= most => records.end = record + 1,
            _ => {
                passes.push(record..record + 1);
                tokens = 0;
            }
        }
        tokens += length;
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_few_and_within_the_limit_and_the_largest_is_small() {
        let sizes = |lengths: &[usize], most| -> Vec<usize> {
            let passes = by_tokens(lengths, most);
            let records: Vec<usize> = passes.iter().flat_map(Clone::clone).collect();
            assert!(records.into_iter().eq(0..lengths.len()), "each record once");
            let size = |records: &Range<usize>| lengths[records.clone()].iter().sum();
            passes.iter().map(size).collect()
        };
        assert_eq!(sizes(&[5, 3, 4], 12), [12]);
        assert_eq!(sizes(&[5, 3, 4], usize::MAX), [12]);
        assert_eq!(sizes(&[1; 13], 12), [7, 6]);
        assert_eq!(sizes(&[4, 4, 4, 4, 2, 2], 14), [12, 8]);
        assert_eq!(sizes(&[1, 6, 6, 6, 1], 8), [7, 6, 7]);
        assert_eq!(sizes(&[512; 32], 8192), [8192, 8192]);
        // A record that is longer than the limit is alone, and nothing is lost beside it.
        assert_eq!(sizes(&[2, 30, 2, 2], 8), [2, 30, 4]);
        assert_eq!(sizes(&[9, 9, 9], 1), [9, 9, 9]);
        assert!(sizes(&[], 8).is_empty());
        let lengths: Vec<usize> = (0..64).map(|i| i * 37 % 101 + 1).collect();
        for most in 101..700 {
            let sizes = sizes(&lengths, most);
            assert!(sizes.iter().all(|&size| size <= most), "{most}");
            let largest = sizes.iter().copied().max().unwrap();
            // No smaller one would do, but for that of the longest record.
            assert!(largest == 101 || sizes.len() < by_tokens(&lengths, largest - 1).len());
        }
    }

    #[test]
    fn a_window_goes_through_a_gpu_in_fewer_passes_than_it_has_micro_batches() {
        let lengths = [40, 10, 10, 10, 5, 5, 10, 10];
        let micro_batches = [0..2, 2..4, 4..6, 6..8];
        assert_eq!(Cut::ByRecords.window(&lengths, 2), micro_batches);
        assert_eq!(Cut::ByRecords.window(&lengths[..7], 2)[3], 6..7);
        // 100 tokens: two records of the longest have 80.
        assert_eq!(Cut::ByTokens(8192).window(&lengths, 2), [0..2, 2..8]);
        assert_eq!(Cut::ByTokens(8192).window(&lengths, 8).len(), 1);
        assert_eq!(Cut::ByTokens(50).window(&lengths, 8), [0..2, 2..8]);
        for micro_batch in [1, 2, 3, 8] {
            for records in Cut::ByTokens(8192).window(&lengths, micro_batch) {
                assert!(lengths[records].iter().sum::<usize>() <= micro_batch * 40);
            }
        }
        assert!(Cut::ByTokens(8192).window(&[], 2).is_empty());
    }
}
