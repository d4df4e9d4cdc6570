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

/// What becomes of records longer than --max-length.
#[derive(Clone, Copy, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverLong {
    /// They are cut.
    Truncate,
    /// They are rejected.
    Reject,
}

/// What a bad record does.
#[derive(Clone, Copy, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBadRecord {
    /// It is left out and named in rejects.jsonl.
    Skip,
    /// It ends the job.
    Fail,
}

/// Returns a choice's word as the contract writes it; empty for none.
pub(crate) fn word<T: ValueEnum>(choice: Option<T>) -> String {
    choice
        .and_then(|choice| choice.to_possible_value())
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}
