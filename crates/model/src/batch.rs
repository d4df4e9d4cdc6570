//! Records packed end to end, without padding: the input of one pass of training.

use std::borrow::Cow;
use std::ops::Range;

use crate::config::Config;
use crate::cut::Cut;
use crate::error::{Error, Result};

/// Several records as one sequence. Positions restart at each record, and attention does not cross
/// records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids of all records, one after another.
    pub ids: Vec<u32>,
    /// A label for each id: the id itself if it is learned (predicted from the position before),
    /// else -100.
    pub labels: Vec<i32>,
    /// Where each record starts, and the total at the end (`cu_seqlens`): records + 1 values.
    pub starts: Vec<u32>,
    /// Each record's index in its optimizer window. Dropout's mask depends on it.
    pub slots: Vec<u32>,
}

/// The sum of token losses and the count of learned targets. Those of several batches add up to a
/// window's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowLoss {
    /// Sum of the negative log likelihoods of the targets, in nats.
    pub sum: f64,
    /// Learned targets.
    pub targets: u64,
}

impl WindowLoss {
    /// The mean loss of a target; 0 without targets.
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

    /// Appends a record; `slot` is its index in the optimizer window.
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
    /// Lengths do not match, a record is empty or longer than the model's longest, or an id or
    /// label is outside the vocabulary.
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

    /// The batch as parts that each go through the device in one pass.
    pub(crate) fn parts(&self, cut: Cut) -> Vec<Cow<'_, Self>> {
        let lengths = self.starts.windows(2);
        let lengths: Vec<usize> = lengths.map(|pair| (pair[1] - pair[0]) as usize).collect();
        let passes = cut.batch(&lengths);
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

    /// The rows whose output predicts a learned target, and these targets. A label belongs to the
    /// position before it in the same record.
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
    fn parts_hold_what_the_batch_holds() {
        let mut batch = Batch::new();
        for (slot, length) in [3_u32, 1, 4, 2].into_iter().enumerate() {
            let ids: Vec<u32> = (0..length).map(|id| 10 * slot as u32 + id).collect();
            let labels: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
            batch.push(&ids, &labels, slot as u32);
        }
        for whole in [Cut::ByRecords, Cut::ByTokens(10)] {
            assert_eq!(batch.parts(whole), [Cow::Borrowed(&batch)]);
        }
        let mut again = Batch::new();
        for part in batch.parts(Cut::ByTokens(5)) {
            assert!(part.tokens() <= 5);
            for (pair, &slot) in part.starts.windows(2).zip(&part.slots) {
                let tokens = pair[0] as usize..pair[1] as usize;
                again.push(&part.ids[tokens.clone()], &part.labels[tokens], slot);
            }
        }
        assert_eq!(again, batch);
    }
}
