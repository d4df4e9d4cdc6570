//! The two purposes of a data set's rows.

use serde::{Deserialize, Serialize};

/// The rows for one purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Rows to train on.
    Train,
    /// Rows kept for validation.
    Validation,
}

impl Split {
    /// The name in a shard's footer.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }

    /// Reads its name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Train, Self::Validation]
            .into_iter()
            .find(|split| split.name() == name)
    }
}
