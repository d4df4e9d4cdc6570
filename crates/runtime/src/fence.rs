//! The fencing token of a job.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The number of a claim on a job: the revision of the write that claimed it, 0 before the first
/// claim. It rises from one holder to the next, so that a write with a lower fence is stale.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Fence(pub u64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Fence {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}
