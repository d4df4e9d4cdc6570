//! A run's position and state at a step boundary: everything that another worker needs to resume.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A run's state after `step` optimizer steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The position in the run.
    pub progress: Progress,
    /// The trainable buffer, as [`togi_model::Lora::to_bytes`] writes it.
    pub lora: Bytes,
    /// The optimizer's state, as [`togi_model::optim::AdamW::to_bytes`] writes it.
    pub optimizer: Bytes,
}

/// A run's position at a step boundary. Together with the recipe it determines the learning rate,
/// the order of the rows and dropout.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done; also AdamW's step count.
    pub step: u64,
    /// Epoch of the next record, from 0.
    pub epoch: u64,
    /// Records of that epoch already trained on.
    pub offset: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Records trained on.
    pub samples: u64,
    /// Seconds spent in steps by all workers of the job. Only reported; nothing depends on it.
    pub seconds: f64,
}
