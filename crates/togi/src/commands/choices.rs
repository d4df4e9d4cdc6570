//! Choices that a request names by a word.

use clap::ValueEnum;
use serde::Deserialize;

/// Which targets are learned.
#[derive(Clone, Copy, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Learn {
    /// The whole sequence.
    All,
    /// The answer.
    Answer,
}

/// The treatment of records longer than --max-length.
#[derive(Clone, Copy, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverLong {
    /// They are cut.
    Truncate,
    /// They are rejected.
    Reject,
}

/// The treatment of a bad record.
#[derive(Clone, Copy, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBadRecord {
    /// It is left out and named in rejects.jsonl.
    Skip,
    /// It ends the job.
    Fail,
}

/// Returns the word of a choice in a request; empty for `None`.
pub(crate) fn word<T: ValueEnum>(choice: Option<T>) -> String {
    choice
        .and_then(|choice| choice.to_possible_value())
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}
