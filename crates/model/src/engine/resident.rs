//! What an engine has on its device: the network, and the adapters and caches of its callers.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::decode::forward::Part;
use crate::engine::slots::{Handle, Slots};
use crate::error::Result;
use crate::lora::Lora;
use crate::network::Network;
use crate::network::factors::Factors;
use crate::ops::decoding::Decode;

/// An adapter on an engine's device, ready to decode with. Clones share it, and the last one frees
/// its memory. Only the engine that made it takes it.
#[derive(Clone)]
pub struct Adapter {
    handle: Arc<Handle>,
}

/// The keys and values of one sequence on an engine's device. It grows with the sequence; dropping
/// it frees its memory. Only the engine that made it takes it.
pub struct Cache {
    handle: Handle,
    pub(super) len: usize,
}

/// One sequence's rows of a decoding pass.
pub struct Segment<'a> {
    /// The sequence's past.
    pub cache: &'a mut Cache,
    /// The next ids, at least one: a part of the prompt, or the last token.
    pub ids: &'a [u32],
    /// None for the base alone.
    pub adapter: Option<&'a Adapter>,
}

/// A network on its device, with what callers hold by handle.
pub(crate) struct Resident<O: Decode> {
    pub(crate) network: Network<O>,
    adapters: Slots<Factors<O::Array>>,
    caches: Slots<Mutex<O::Cache>>,
}

impl Cache {
    /// Tokens in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been decoded yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<O: Decode> Resident<O> {
    pub(super) fn new(network: Network<O>) -> Self {
        Self {
            network,
            adapters: Slots::new(),
            caches: Slots::new(),
        }
    }

    pub(super) fn adapter(&self, lora: &Lora) -> Result<Adapter> {
        let factors = self.network.factors(lora)?;
        Ok(Adapter {
            handle: Arc::new(self.adapters.insert(factors)),
        })
    }

    pub(super) fn cache(&self) -> Cache {
        let config = self.network.config();
        let (layers, heads) = (config.num_hidden_layers, config.num_attention_heads);
        let cache = self.network.ops().cache(layers, heads);
        Cache {
            handle: self.caches.insert(Mutex::new(cache)),
            len: 0,
        }
    }

    /// The factors of an adapter of this engine; none for the base alone.
    pub(super) fn factors(
        &self,
        adapter: Option<&Adapter>,
    ) -> Result<Option<Arc<Factors<O::Array>>>> {
        adapter
            .map(|adapter| self.adapters.get(&adapter.handle))
            .transpose()
    }

    /// The logits after the last id of each segment.
    pub(super) fn decode(&self, segments: &[Segment<'_>]) -> Result<Vec<Vec<f32>>> {
        let factors: Vec<_> = segments
            .iter()
            .map(|segment| self.factors(segment.adapter))
            .collect::<Result<_>>()?;
        let caches: Vec<_> = segments
            .iter()
            .map(|segment| self.caches.get(&segment.cache.handle))
            .collect::<Result<_>>()?;
        // Never contended: a segment has its cache alone.
        let mut locked: Vec<_> = caches.iter().map(|cache| cache.lock()).collect();
        let parts = segments.iter().zip(&factors).zip(&mut locked);
        let parts = parts.map(|((segment, factors), cache)| Part {
            ids: segment.ids,
            past: segment.cache.len,
            cache: &mut **cache,
            factors: factors.as_deref(),
        });
        self.network.decode(parts)
    }
}
