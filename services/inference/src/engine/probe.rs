//! The logits after a prompt, computed as for an answer: a batch request that ends when its prompt
//! is read.

use std::sync::Arc;

use togi_model::{Cache, Engine};
use tokio::sync::oneshot;

use crate::engine::scheduler::Active;
use crate::engine::terms::Terms;
use crate::error::{Error, Result};
use crate::pool::ReadyAdapter;

/// A request for logits.
pub(crate) struct Probe {
    /// An engine on the device of the thread, not necessarily the one that serves.
    pub(crate) engine: Arc<Engine>,
    /// On the same engine.
    pub(crate) adapter: Arc<ReadyAdapter>,
    /// The prompt's ids.
    pub(crate) prompt: Vec<u32>,
    pub(crate) terms: Terms,
    /// Receives the logits after the last id, one for each id of the vocabulary.
    pub(crate) logits: oneshot::Sender<Result<Vec<f32>>>,
}

/// A probe whose prompt is being read.
pub(crate) struct Reading {
    probe: Probe,
    cache: Cache,
}

impl Probe {
    /// Begins to read.
    pub(crate) fn begin(mut self) -> Reading {
        self.terms.permit.begin();
        Reading {
            cache: self.engine.cache(),
            probe: self,
        }
    }

    /// Whether nobody waits for the logits.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.logits.is_closed()
    }

    /// Ends it with an error.
    pub(crate) fn fail(self, error: Error) {
        // The receiver may have gone away.
        let _ = self.logits.send(Err(error));
    }
}

impl Reading {
    /// Returns the facts for the scheduler.
    pub(crate) fn active(&self) -> Active {
        let read = self.cache.len();
        self.probe
            .terms
            .active(read, self.probe.prompt.len() - read, 1)
    }

    pub(crate) fn probe(&self) -> &Probe {
        &self.probe
    }

    pub(crate) fn into_probe(self) -> Probe {
        self.probe
    }

    /// Reads the next tokens in a pass of their own, because the engine may be another one. Sends
    /// the logits after the last; returns `None` then.
    pub(crate) fn read(mut self, tokens: Option<&usize>) -> Option<Self> {
        let Probe {
            engine,
            adapter,
            prompt,
            terms,
            ..
        } = &mut self.probe;
        let Some(tokens) = tokens else {
            terms.passed_over += 1;
            return Some(self);
        };
        let read = self.cache.len();
        let ids = &prompt[read..read + tokens];
        let logits = engine.decode(&mut self.cache, ids, Some(adapter.adapter()));
        if logits.is_ok() && self.cache.len() < prompt.len() {
            return Some(self);
        }
        // The receiver may have gone away.
        let _ = self.probe.logits.send(logits.map_err(Error::Network));
        None
    }
}
