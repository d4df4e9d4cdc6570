//! A look at the logits that follow a prompt, between two rounds of the engine's thread: nothing is drawn, and no client waits.

use std::sync::Arc;

use togi_model::Engine;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::served_adapter::ServedAdapter;

/// What shall be looked at.
pub(crate) struct Probe {
    /// A network on the engine's device, not necessarily the one that is served.
    pub(crate) network: Arc<Engine>,
    pub(crate) adapter: Arc<ServedAdapter>,
    /// The prompt's ids.
    pub(crate) prompt: Vec<u32>,
    /// Hears the logits after the last id, one for each id of the vocabulary.
    pub(crate) logits: oneshot::Sender<Result<Vec<f32>>>,
}

impl Probe {
    /// Computes and tells.
    pub(crate) fn run(self) {
        let mut cache = self.network.cache();
        let adapter = Some(self.adapter.adapter());
        let logits = self.network.decode(&mut cache, &self.prompt, adapter);
        // Nobody may listen any more.
        let _ = self.logits.send(logits.map_err(Error::Network));
    }
}
