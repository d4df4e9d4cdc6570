//! Why a record was rejected: data for `rejects.jsonl`, and no error.

use serde::{Deserialize, Serialize};

/// Why a record was rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// The fault, in words for the record's author.
    pub reason: String,
    /// The column at fault, by our name; empty if it is the whole record.
    pub field: String,
}

impl Reject {
    /// Rejects a whole record.
    pub fn record(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            field: String::new(),
        }
    }

    /// Rejects a record for one column.
    pub fn field(field: &str, reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            field: field.to_owned(),
        }
    }
}
