//! The logits after a prompt, computed as for an answer, between two rounds of the engine's thread.

use std::sync::Arc;

use togi_model::Engine;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::served_adapter::ServedAdapter;

/// A request for logits.
pub(crate) struct Probe {
    /// An engine on the device of the thread, not necessarily the one that serves.
    pub(crate) engine: Arc<Engine>,
    /// On the same engine.
    pub(crate) adapter: Arc<ServedAdapter>,
    /// The prompt's ids.
    pub(crate) prompt: Vec<u32>,
    /// Receives the logits after the last id, one for each id of the vocabulary.
    pub(crate) logits: oneshot::Sender<Result<Vec<f32>>>,
}

impl Probe {
    /// Computes the logits and sends them.
    pub(crate) fn run(self) {
        let mut cache = self.engine.cache();
        let adapter = Some(self.adapter.adapter());
        let logits = self.engine.decode(&mut cache, &self.prompt, adapter);
        // The receiver may have gone away.
        let _ = self.logits.send(logits.map_err(Error::Network));
    }
}
