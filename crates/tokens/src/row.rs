//! One row: a record's token ids and their labels.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use togi_common::Digest;

use crate::error::{Error, Result};
use crate::prompt;
use crate::record::{Record, Reject};
use crate::tokenizer::{Scratch, Tokenizer};

/// The label of an id that is not learned.
pub const IGNORED: i32 = -100;

/// Which ids of a sequence are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Learn {
    /// The whole sequence.
    #[default]
    All,
    /// The answer with its end of sequence.
    Answer,
}

impl Learn {
    /// Every choice.
    pub const ALL: [Self; 2] = [Self::All, Self::Answer];

    /// The name in settings and metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Answer => "answer",
        }
    }

    /// Reads its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|learn| learn.name() == name)
    }
}

/// What happens to a record that is longer than `max_length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverLong {
    /// It is cut.
    #[default]
    Truncate,
    /// It is rejected.
    Reject,
}

impl OverLong {
    /// Every choice.
    pub const ALL: [Self; 2] = [Self::Truncate, Self::Reject];

    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Truncate => "truncate",
            Self::Reject => "reject",
        }
    }

    /// Reads its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|over_long| over_long.name() == name)
    }
}

/// How records become rows. Each field changes the data set's digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Most ids in a row, end of sequence included; at least 2.
    pub max_length: u32,
    /// Which ids are learned.
    pub learn: Learn,
    /// What happens to longer records.
    pub over_long: OverLong,
    /// Share of the records that is kept for validation; at least 0 and below 1.
    pub validation_share: f64,
    /// Rows in a shard; at least 1.
    pub rows_per_shard: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_length: 512,
            learn: Learn::All,
            over_long: OverLong::Truncate,
            validation_share: 0.0,
            rows_per_shard: 4096,
        }
    }
}

impl Settings {
    /// The largest `max_length`; far above any model's context.
    pub const MAX_LENGTH_CAP: u32 = 1 << 20;
    /// The most rows in a shard.
    pub const ROWS_PER_SHARD_CAP: u32 = 1 << 20;

    /// Fails with the field's name if a value is out of its range.
    pub fn validate(&self) -> Result<()> {
        if !(2..=Self::MAX_LENGTH_CAP).contains(&self.max_length) {
            let reason = format!(
                "{} is not within 2 and {}",
                self.max_length,
                Self::MAX_LENGTH_CAP
            );
            return Err(Error::setting("max_length", reason));
        }
        if !(0.0..1.0).contains(&self.validation_share) {
            let reason = format!("{} is not at least 0 and below 1", self.validation_share);
            return Err(Error::setting("validation_share", reason));
        }
        if !(1..=Self::ROWS_PER_SHARD_CAP).contains(&self.rows_per_shard) {
            let reason = format!(
                "{} is not within 1 and {}",
                self.rows_per_shard,
                Self::ROWS_PER_SHARD_CAP
            );
            return Err(Error::setting("rows_per_shard", reason));
        }
        Ok(())
    }
}

/// A tokenized record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row {
    /// The row's name: see [`Record::sample_id`].
    pub sample_id: String,
    /// Token ids; the last one is the end of sequence.
    pub input_ids: Vec<u32>,
    /// For each id the id itself if it is learned, else [`IGNORED`].
    pub labels: Vec<i32>,
    /// The record's category.
    pub category: String,
}

/// Turns records into rows. Each thread has its own, because it holds the tokenizer's buffers.
#[derive(Debug, Clone)]
pub struct Encoder {
    tokenizer: Arc<Tokenizer>,
    settings: Settings,
    eos: u32,
    scratch: Scratch,
    ends: Vec<u32>,
}

impl Encoder {
    /// Fails if a setting is out of its range or the tokenizer has no end-of-sequence id.
    pub fn new(tokenizer: Arc<Tokenizer>, settings: Settings) -> Result<Self> {
        settings.validate()?;
        let eos = tokenizer
            .eos()
            .ok_or_else(|| Error::tokenizer("it has no end-of-sequence piece"))?;
        Ok(Self {
            tokenizer,
            settings,
            eos,
            scratch: Scratch::default(),
            ends: Vec::new(),
        })
    }

    /// Turns one record into a row.
    ///
    /// The whole text is tokenized at once, cut to `max_length − 1` ids, and ended by the
    /// end-of-sequence id. With [`Learn::Answer`] an id is learned if it ends after the start of
    /// the answer. A record whose prompt fills the row is then rejected, because nothing of its
    /// answer would be learned.
    pub fn row(&mut self, record: &Record) -> Result<Row, Reject> {
        let templated = prompt::training(record);
        let most = self.settings.max_length as usize - 1;
        let mut ids = Vec::new();
        let first_learned = match self.settings.learn {
            Learn::All => {
                self.tokenizer
                    .encode_into(&templated.text, &mut self.scratch, &mut ids);
                0
            }
            Learn::Answer => {
                self.tokenizer.encode_with_ends(
                    &templated.text,
                    &mut self.scratch,
                    &mut ids,
                    &mut self.ends,
                );
                self.ends
                    .partition_point(|end| *end as usize <= templated.answer_start)
            }
        };
        if ids.len() > most {
            if self.settings.over_long == OverLong::Reject {
                let reason = format!(
                    "{} ids with the end of sequence, more than max_length {}",
                    ids.len() + 1,
                    self.settings.max_length
                );
                return Err(Reject::record(reason));
            }
            if first_learned >= most {
                let reason = format!(
                    "the prompt alone has {first_learned} ids: nothing of the answer is within max_length {}",
                    self.settings.max_length
                );
                return Err(Reject::field("output", reason));
            }
            ids.truncate(most);
        }
        ids.push(self.eos);
        let labels = ids.iter().enumerate();
        let labels = labels
            .map(|(at, id)| {
                if at < first_learned {
                    IGNORED
                } else {
                    id.cast_signed()
                }
            })
            .collect();
        Ok(Row {
            sample_id: record.sample_id(),
            input_ids: ids,
            labels,
            category: record.category.clone(),
        })
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }
}

/// Returns whether a record is kept for validation: whether the first eight bytes of its content
/// hash ([`Record::content_hash`]), read big-endian as a fraction of 2^64, are below the share. The
/// same content is always in the same split.
pub fn is_validation(content_hash: Digest, share: f64) -> bool {
    let mut first = [0; 8];
    first.copy_from_slice(&content_hash.as_bytes()[..8]);
    // 2^53 steps: exact in f64.
    let fraction = (u64::from_be_bytes(first) >> 11) as f64 / (1_u64 << 53) as f64;
    fraction < share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked_by_name() {
        let field = |settings: Settings| match settings.validate() {
            Err(Error::Setting { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let good = Settings::default();
        assert!(good.validate().is_ok());
        assert_eq!(
            field(Settings {
                max_length: 1,
                ..good.clone()
            }),
            "max_length"
        );
        assert_eq!(
            field(Settings {
                rows_per_shard: 0,
                ..good.clone()
            }),
            "rows_per_shard"
        );
        for share in [-0.1, 1.0, f64::NAN, f64::INFINITY] {
            let settings = Settings {
                validation_share: share,
                ..good.clone()
            };
            assert_eq!(field(settings), "validation_share");
        }
    }

    #[test]
    fn validation_share_is_met() {
        let kept = (0..20_000_u32)
            .filter(|n| {
                let record = Record {
                    instruction: n.to_string(),
                    input: String::new(),
                    output: "o".into(),
                    category: String::new(),
                    index: String::new(),
                };
                is_validation(record.content_hash(), 0.1)
            })
            .count();
        assert!((1_850..2_150).contains(&kept), "{kept}");
        assert!(!is_validation(Digest::from([0; 32]), 0.0));
        assert!(!is_validation(Digest::from([255; 32]), 0.999_999));
    }
}
