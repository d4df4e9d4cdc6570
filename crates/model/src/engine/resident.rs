//! What an engine has on its device: the network, and the adapters and caches of its callers.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::engine::pages::{Copied, PagePool, PageTable, PrefixLimits};
use crate::engine::prefixes::Root;
use crate::engine::slots::{Handle, Slots};
use crate::error::{Error, Result};
use crate::lora::Lora;
use crate::network::Network;
use crate::network::decoding::{Begun, Decoded, Rows, Targets};
use crate::ops::decoding::{Decode, PAGE, PageShape, Phase};
use crate::ops::factors::{self, Factors};

/// An adapter on an engine's device, ready to decode with. Clones share it, and the last one frees
/// its memory. Only the engine that made it takes it.
#[derive(Clone)]
pub struct Adapter {
    handle: Arc<Handle>,
    identity: Option<[u8; 32]>,
}

/// The keys and values of one sequence on an engine's device. It grows with the sequence; dropping
/// it frees its pages. Only the engine that made it takes it.
pub struct Cache {
    table: PageTable,
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
    /// Whether the ids are of the prompt or of the answer. Each has its own arithmetic.
    pub phase: Phase,
}

/// A network on its device, with what callers hold by handle.
pub(crate) struct Resident<O: Decode> {
    pub(crate) network: Network<O>,
    parameters: u64,
    adapters: Slots<O::Adapter>,
    pool: PagePool,
    pages: O::Pages,
    /// Held while the count of pages changes, so that the device has those that the pool counts.
    resizing: Mutex<()>,
}

/// What the device computes for some segments.
pub(crate) struct UnderWay<'a, O: Decode> {
    network: &'a Network<O>,
    begun: Begun<O>,
    _lock: O::PassLock<'a>,
}

impl Adapter {
    /// The same adapter under an identity, which only adapters with equal values may have. Prompts
    /// that were read with it are found again by it.
    #[must_use]
    pub fn identified(self, identity: [u8; 32]) -> Self {
        let identity = Some(identity);
        Self { identity, ..self }
    }

    /// Its identity, if it was given one.
    pub(crate) fn identity(&self) -> Option<[u8; 32]> {
        self.identity
    }
}

impl Cache {
    /// Tokens in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Forgets all tokens from this one on; they will be decoded once more.
    pub(crate) fn rewind(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Whether nothing has been decoded yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<O: Decode> UnderWay<'_, O> {
    /// Waits for the device. Returns what it tells of each segment.
    pub(super) fn finish(self) -> Result<Vec<Decoded>> {
        self.network.finish_decoding(self.begun)
    }
}

impl<O: Decode> Resident<O> {
    pub(super) fn new(network: Network<O>) -> Self {
        let config = network.config();
        let pages = network.ops().pages(PageShape {
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            dim: config.head_dim(),
            longest: config.max_position_embeddings,
        });
        Self {
            parameters: config.parameters(),
            network,
            adapters: Slots::new(),
            pool: PagePool::new(),
            pages,
            resizing: Mutex::default(),
        }
    }

    pub(super) fn adapter(&self, lora: &Lora) -> Result<Adapter> {
        let (config, ops) = (self.network.config(), self.network.ops());
        lora.check_fits(config)?;
        let modules = lora.modules();
        let matrices = ops.adapter_matrices(lora.values(), &factors::slots(modules))?;
        let factors = Factors::of(config, modules, matrices);
        let adapter = ops.adapter(factors, config.num_hidden_layers)?;
        Ok(Adapter {
            handle: Arc::new(self.adapters.insert(adapter)),
            identity: None,
        })
    }

    pub(super) fn cache(&self) -> Cache {
        Cache {
            table: self.pool.table(),
            len: 0,
        }
    }

    pub(super) fn adopt(&self, cache: &mut Cache, root: Root, prompt: &[u32]) {
        if cache.len != PAGE * cache.table.pages().len() {
            return;
        }
        let most = prompt.len().saturating_sub(1) / PAGE;
        cache.table.adopt(root, prompt, most);
        cache.len = PAGE * cache.table.pages().len();
    }

    pub(super) fn share(&self, cache: &mut Cache, root: Root, prompt: &[u32]) {
        let read = prompt.len().min(cache.len);
        cache.table.share(root, &prompt[..read]);
    }

    pub(super) fn keep_prefixes(&self, limits: PrefixLimits) {
        self.pool.limit(limits);
    }

    pub(super) fn kept_pages(&self) -> usize {
        self.pool.kept()
    }

    pub(super) fn fork(&self, cache: &Cache) -> Result<Cache> {
        if !self.pool.owns(&cache.table) {
            return Err(Error::Input("a cache is of another engine".into()));
        }
        let _resizing = self.resizing.lock();
        let forked = self.try_fork(cache);
        if forked.is_err() && self.pool.limit_to_made() {
            return self.try_fork(cache);
        }
        forked
    }

    fn try_fork(&self, cache: &Cache) -> Result<Cache> {
        let made = self.pool.made();
        let (table, copied) = cache.table.fork(cache.len);
        if let Err(error) = self.resize() {
            drop(table);
            self.pool.forget_above(made);
            return Err(error);
        }
        if let Some(Copied { from, to }) = copied {
            self.network.ops().copy_page(&self.pages, from, to)?;
        }
        let len = cache.len;
        Ok(Cache { table, len })
    }

    /// Makes the pages on the device that the pool counts.
    fn resize(&self) -> Result<()> {
        let count = self.pool.made() as usize;
        self.network.ops().resize(&self.pages, count)
    }

    /// Frees all pages if no sequence has any.
    pub(super) fn free_unused_pages(&self) -> Result<()> {
        let _resizing = self.resizing.lock();
        if self.pool.forget_unused() {
            self.network.ops().resize(&self.pages, 0)?;
        }
        Ok(())
    }

    /// The pages that sequences have.
    pub(super) fn used_pages(&self) -> usize {
        self.pool.used()
    }

    /// An adapter of this engine on the device; none for the base alone.
    pub(super) fn on_device(&self, adapter: Option<&Adapter>) -> Result<Option<Arc<O::Adapter>>> {
        adapter
            .map(|adapter| self.adapters.get(&adapter.handle))
            .transpose()
    }

    /// Gives each segment the pages of its tokens. If the device has no memory for them, all
    /// segments keep the pages that they had.
    fn reserve(&self, segments: &mut [Segment<'_>]) -> Result<()> {
        if (segments.iter()).any(|segment| !self.pool.owns(&segment.cache.table)) {
            return Err(Error::Input("a cache is of another engine".into()));
        }
        let _resizing = self.resizing.lock();
        let reserved = self.try_reserve(segments);
        // Kept pages give way where there is no memory for new ones.
        if reserved.is_err() && self.pool.limit_to_made() {
            return self.try_reserve(segments);
        }
        reserved
    }

    fn try_reserve(&self, segments: &mut [Segment<'_>]) -> Result<()> {
        let made = self.pool.made();
        let mut before = Vec::with_capacity(segments.len());
        for segment in segments.iter_mut() {
            before.push(segment.cache.table.pages().len());
            let tokens = segment.cache.len + segment.ids.len();
            segment.cache.table.reserve(tokens);
        }
        let resized = self.resize();
        if resized.is_err() {
            for (segment, count) in segments.iter_mut().zip(before) {
                segment.cache.table.truncate(count);
            }
            self.pool.forget_above(made);
        }
        resized
    }

    /// Begins to compute the logits after the last id of each segment, and the scores of its
    /// targets.
    pub(super) fn begin(
        &self,
        segments: &mut [Segment<'_>],
        targets: &[Targets<'_>],
    ) -> Result<UnderWay<'_, O>> {
        let adapters: Vec<_> = segments
            .iter()
            .map(|segment| self.on_device(segment.adapter))
            .collect::<Result<_>>()?;
        self.reserve(segments)?;
        let rows: Vec<_> = segments
            .iter()
            .zip(&adapters)
            .zip(targets)
            .map(|((segment, adapter), &targets)| Rows {
                phase: segment.phase,
                ids: segment.ids,
                past: segment.cache.len,
                pages: segment.cache.table.pages(),
                adapter: adapter.as_deref(),
                targets,
            })
            .collect();
        let tokens: usize = rows.iter().map(|rows| rows.ids.len()).sum();
        let multiplications = self.parameters * tokens as u64;
        let ops = self.network.ops();
        let lock = ops.lock_pass();
        let begin = || self.network.begin_decoding(&self.pages, &rows);
        let begun = ops.enter(multiplications, begin)?;
        Ok(UnderWay {
            network: &self.network,
            begun,
            _lock: lock,
        })
    }
}
