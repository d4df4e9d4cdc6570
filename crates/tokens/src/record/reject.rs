//! Why a record gives no row: it was rejected, which is data for `rejects.jsonl` and no error, or
//! it refuses its whole file.

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

/// Why a record gives no row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is rejected alone.
    Record(Reject),
    /// Its whole file is refused for this reason: rejecting the record would cut what was said, or
    /// read the others in a form that is not theirs.
    File(String),
}

impl From<Reject> for Fault {
    fn from(reject: Reject) -> Self {
        Self::Record(reject)
    }
}
