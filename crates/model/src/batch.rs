//! What one call of the engine trains on: records packed end to end, without padding.

use std::borrow::Cow;
use std::ops::Range;

use crate::config::Config;
use crate::error::{Error, Result};

/// Several records as one sequence; positions restart and attention ends at each record's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids of all records, one after another.
    pub ids: Vec<u32>,
    /// One for each id: the id again where it is learned (predicted from the position before),
    /// -100 where not.
    pub labels: Vec<i32>,
    /// Where each record starts, and the total at the end (`cu_seqlens`): records + 1 values.
    pub starts: Vec<u32>,
    /// Each record's place in its optimizer window, which dropout's mask depends on.
    pub slots: Vec<u32>,
}

/// The sum of token losses and the count of learned targets; sums of several batches add up to a
/// window's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowLoss {
    /// Sum of the negative log likelihoods of the targets, in nats.
    pub sum: f64,
    /// Learned targets.
    pub targets: u64,
}

impl WindowLoss {
    /// The mean loss of a target; 0 if there is none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.targets == 0 {
            0.0
        } else {
            self.sum / self.targets as f64
        }
    }

    /// Adds another batch of the same window.
    pub fn add(&mut self, other: Self) {
        self.sum += other.sum;
        self.targets += other.targets;
    }
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self {
            starts: vec![0],
            ..Self::default()
        }
    }

    /// Appends a record; `slot` is its place in the optimizer window.
    pub fn push(&mut self, ids: &[u32], labels: &[i32], slot: u32) {
        if self.starts.is_empty() {
            self.starts.push(0);
        }
        self.ids.extend_from_slice(ids);
        self.labels.extend_from_slice(labels);
        self.starts
            .push(u32::try_from(self.ids.len()).unwrap_or(u32::MAX));
        self.slots.push(slot);
    }

    /// Records in the batch.
    #[must_use]
    pub fn records(&self) -> usize {
        self.slots.len()
    }

    /// Tokens in the batch.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Checks the batch against a model.
    ///
    /// # Errors
    /// Lengths that do not match, a record that is empty or longer than the model's longest, an id
    /// or label outside the vocabulary.
    pub fn validate(&self, config: &Config) -> Result<()> {
        let refuse = |reason: String| Err(Error::Input(reason));
        if self.ids.len() != self.labels.len() {
            return refuse(format!(
                "{} ids but {} labels",
                self.ids.len(),
                self.labels.len()
            ));
        }
        if self.slots.len() + 1 != self.starts.len() {
            return refuse(format!(
                "{} slots but {} starts",
                self.slots.len(),
                self.starts.len()
            ));
        }
        if self.starts.first() != Some(&0)
            || self.starts.last().map(|&end| end as usize) != Some(self.ids.len())
        {
            return refuse("starts do not span the ids".into());
        }
        for pair in self.starts.windows(2) {
            if pair[1] <= pair[0] {
                return refuse("a record is empty".into());
            }
            let tokens = (pair[1] - pair[0]) as usize;
            if tokens > config.max_position_embeddings {
                return refuse(format!(
                    "a record has {tokens} tokens, the model's longest is {}",
                    config.max_position_embeddings
                ));
            }
        }
        check_ids(&self.ids, config)?;
        for &label in &self.labels {
            let known = usize::try_from(label).is_ok_and(|label| label < config.vocab_size);
            if label != -100 && !known {
                return refuse(format!(
                    "label {label} is outside the vocabulary of {}",
                    config.vocab_size
                ));
            }
        }
        Ok(())
    }

    /// The batch as parts that are each taken in one pass: see [`passes`].
    pub(crate) fn parts(&self, at_once: usize) -> Vec<Cow<'_, Self>> {
        let lengths = self.starts.windows(2);
        let lengths: Vec<usize> = lengths.map(|pair| (pair[1] - pair[0]) as usize).collect();
        let passes = passes(&lengths, at_once);
        if passes.len() <= 1 {
            return vec![Cow::Borrowed(self)];
        }
        let part = |records: &Range<usize>| Cow::Owned(self.part(records));
        passes.iter().map(part).collect()
    }

    fn part(&self, records: &Range<usize>) -> Self {
        let starts = &self.starts[records.start..=records.end];
        let first = starts[0];
        let tokens = first as usize..starts[starts.len() - 1] as usize;
        Self {
            ids: self.ids[tokens.clone()].to_vec(),
            labels: self.labels[tokens].to_vec(),
            starts: starts.iter().map(|start| start - first).collect(),
            slots: self.slots[records.clone()].to_vec(),
        }
    }

    /// The rows whose output predicts a learned target, with that target: a label counts at the
    /// position before it, and never across records.
    pub(crate) fn targets(&self) -> (Vec<u32>, Vec<u32>) {
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for pair in self.starts.windows(2) {
            for row in pair[0]..pair[1] - 1 {
                if let Ok(target) = u32::try_from(self.labels[row as usize + 1]) {
                    rows.push(row);
                    targets.push(target);
                }
            }
        }
        (rows, targets)
    }
}

/// How the records of a window, of these lengths, go through a device in turn. The processor takes
/// micro-batches of so many records as they are. A card takes as few passes as keep within its
/// tokens `at_once` ([`tokens_at_once`]), and within what so many of the window's longest record
/// would have: what a micro-batch takes at the most, of whatever records. What a window learns
/// depends on neither.
///
/// [`tokens_at_once`]: crate::device::tokens_at_once
#[must_use]
pub fn window_passes(lengths: &[usize], micro_batch: usize, at_once: usize) -> Vec<Range<usize>> {
    if at_once == usize::MAX {
        let starts = (0..lengths.len()).step_by(micro_batch.max(1));
        return starts
            .map(|start| start..lengths.len().min(start + micro_batch))
            .collect();
    }
    let longest = lengths.iter().copied().max().unwrap_or(0);
    passes(lengths, at_once.min(micro_batch.saturating_mul(longest)))
}

/// Splits records of these lengths into as few passes as keep each within `at_once` tokens, the
/// largest of which is as small as it can be; a record that is longer is a pass of its own. Depends
/// on the lengths alone, so that it repeats.
#[must_use]
pub fn passes(lengths: &[usize], at_once: usize) -> Vec<Range<usize>> {
    let mut passes = filled(lengths, at_once);
    let total = lengths.iter().sum();
    let (mut too_small, mut enough) = (0, at_once.min(total));
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

/// Passes of as many records as keep within so many tokens, which are the fewest.
fn filled(lengths: &[usize], at_once: usize) -> Vec<Range<usize>> {
    let mut passes: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (record, length) in lengths.iter().enumerate() {
        match passes.last_mut() {
            Some(records) if tokens + length <= at_once => records.end = record + 1,
            _ => {
                passes.push(record..record + 1);
                tokens = 0;
            }
        }
        tokens += length;
    }
    passes
}

pub(crate) fn check_ids(ids: &[u32], config: &Config) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        Some(id) => Err(Error::Input(format!(
            "id {id} is outside the vocabulary of {}",
            config.vocab_size
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_few_and_within_the_limit_and_the_largest_is_small() {
        let sizes = |lengths: &[usize], at_once| -> Vec<usize> {
            let passes = passes(lengths, at_once);
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
        for at_once in 101..700 {
            let sizes = sizes(&lengths, at_once);
            assert!(sizes.iter().all(|&size| size <= at_once), "{at_once}");
            let largest = sizes.iter().copied().max().unwrap();
            // No smaller one would do, but for that of the longest record.
            assert!(largest == 101 || sizes.len() < passes(&lengths, largest - 1).len());
        }
    }

    #[test]
    fn a_window_goes_through_a_card_in_fewer_passes_than_it_has_micro_batches() {
        let lengths = [40, 10, 10, 10, 5, 5, 10, 10];
        let micro_batches = [0..2, 2..4, 4..6, 6..8];
        assert_eq!(window_passes(&lengths, 2, usize::MAX), micro_batches);
        assert_eq!(window_passes(&lengths[..7], 2, usize::MAX)[3], 6..7);
        // 100 tokens: two records of the longest have 80.
        assert_eq!(window_passes(&lengths, 2, 8192), [0..2, 2..8]);
        assert_eq!(window_passes(&lengths, 8, 8192).len(), 1);
        assert_eq!(window_passes(&lengths, 8, 50), [0..2, 2..8]);
        for micro_batch in [1, 2, 3, 8] {
            for records in window_passes(&lengths, micro_batch, 8192) {
                assert!(lengths[records].iter().sum::<usize>() <= micro_batch * 40);
            }
        }
        assert!(window_passes(&[], 2, 8192).is_empty());
    }

    #[test]
    fn parts_hold_what_the_batch_holds() {
        let mut batch = Batch::new();
        for (slot, length) in [3_u32, 1, 4, 2].into_iter().enumerate() {
            let ids: Vec<u32> = (0..length).map(|id| 10 * slot as u32 + id).collect();
            let labels: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
            batch.push(&ids, &labels, slot as u32);
        }
        assert_eq!(batch.parts(10), [Cow::Borrowed(&batch)]);
        let mut again = Batch::new();
        for part in batch.parts(5) {
            assert!(part.tokens() <= 5);
            for (pair, &slot) in part.starts.windows(2).zip(&part.slots) {
                let tokens = pair[0] as usize..pair[1] as usize;
                again.push(&part.ids[tokens.clone()], &part.labels[tokens], slot);
            }
        }
        assert_eq!(again, batch);
    }
}
