//! A base on its device: it evaluates batches and decodes sequences. Callers hold its adapters and
//! caches by handle. Training is in [`crate::training`].

#[cfg(feature = "bench")]
pub mod bench;
mod pages;
mod passes;
mod prefixes;
mod resident;
mod slots;

use std::ops::Range;
use std::sync::Arc;

use crate::base::Base;
use crate::batch::{self, Batch, WindowLoss};
use crate::config::Config;
use crate::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::cuda::Cuda;
#[cfg(not(feature = "cuda"))]
use crate::device::not_built;
use crate::device::{Device, DeviceName};
use crate::error::{Error, Result};
use crate::gpu_limits::{GPU_LARGEST_RANK, GpuMemory};
use crate::lora::Lora;
use crate::memory;
use crate::network::Network;
use crate::network::decoding::{Decoded, Targets};
use crate::ops::decoding::PAGE;
pub use crate::ops::decoding::Phase;
use crate::sampling::Logits;
pub use pages::PrefixLimits;
pub(crate) use prefixes::Root;
pub use resident::{Adapter, Cache, Segment};
use resident::{Resident, UnderWay};

/// A base on a device. It is `Send + Sync`; one thread should own it, because a pass uses every
/// core.
pub struct Engine {
    base: Arc<Base>,
    device: Device,
    on_device: OnDevice,
}

/// What the engine has on one of the devices.
pub(crate) enum OnDevice {
    Cpu(Box<Resident<Cpu>>),
    #[cfg(feature = "cuda")]
    Cuda(Box<Resident<Cuda>>),
}

/// Passes that a device computes.
pub(crate) enum Begun<'a> {
    Cpu(UnderWay<'a, Cpu>),
    #[cfg(feature = "cuda")]
    Cuda(UnderWay<'a, Cuda>),
}

/// Whether every device repeats a pass bit for bit. A kernel that adds in an order that depends on
/// timing would make it false.
pub const BIT_EXACT: bool = true;

/// Evaluates an expression over the variant of an enum of devices.
macro_rules! on {
    ($of:ident, $which:expr, $inner:ident => $body:expr) => {
        match $which {
            $of::Cpu($inner) => $body,
            #[cfg(feature = "cuda")]
            $of::Cuda($inner) => $body,
        }
    };
}
pub(crate) use on;

impl Begun<'_> {
    /// Waits for the device. Returns what it tells of each segment.
    pub(crate) fn finish(self) -> Result<Vec<Decoded>> {
        on!(Begun, self, under_way => under_way.finish())
    }
}

impl Engine {
    /// An engine over a base, on the CPU. Weights are shared, not copied.
    ///
    /// # Errors
    /// The base lacks a tensor (a loaded one does not).
    pub fn new(base: Arc<Base>) -> Result<Self> {
        Self::on(base, Device::Cpu)
    }

    /// An engine over a base, on a device. Linear weights have the base's precision there. A GPU's
    /// `float` is the type of activations and of everything that is not quantized. Usually it is
    /// the precision's own: f32 for f32, fp16 for fp16 (whose training scales its losses), and bf16
    /// for all others.
    ///
    /// # Errors
    /// As [`Engine::new`]; [`Error::Device`] if there is no such device, or it cannot take the
    /// base; for a base that was only opened, a tensor whose values are not finite or do not fit.
    pub fn on(base: Arc<Base>, device: Device) -> Result<Self> {
        let on_device = match device {
            Device::Cpu => OnDevice::Cpu(Box::new(Resident::new(Network::new(Cpu, &base)?))),
            #[cfg(feature = "cuda")]
            Device::Cuda { ordinal, float } => {
                let cuda = Cuda::new(ordinal, float, &base)?;
                OnDevice::Cuda(Box::new(Resident::new(Network::new(cuda, &base)?)))
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda { ordinal, .. } => return Err(not_built(ordinal)),
        };
        Ok(Self {
            base,
            device,
            on_device,
        })
    }

    pub(crate) fn on_device(&self) -> &OnDevice {
        &self.on_device
    }

    /// Whether the device computes a round that has begun while the caller does other work.
    #[must_use]
    pub fn computes_aside(&self) -> bool {
        matches!(self.device, Device::Cuda { .. })
    }

    /// Begins a new peak of [`Engine::device_memory`].
    ///
    /// # Errors
    /// The device's.
    pub fn forget_peak(&self) -> Result<()> {
        match &self.on_device {
            OnDevice::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda")]
            OnDevice::Cuda(resident) => resident.network.ops().forget_peak(),
        }
    }

    /// The peak of allocated bytes on the GPU, and the bytes that it has; none on the CPU.
    #[must_use]
    pub fn device_memory(&self) -> Option<(u64, u64)> {
        match &self.on_device {
            OnDevice::Cpu(_) => None,
            #[cfg(feature = "cuda")]
            OnDevice::Cuda(resident) => resident.network.ops().memory(),
        }
    }

    /// The base.
    #[must_use]
    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// How a window of records of these lengths goes through the device: [`Device::passes`].
    #[must_use]
    pub fn passes(&self, lengths: &[usize], micro_batch: usize) -> Vec<Range<usize>> {
        self.device
            .passes(self.base.precision(), lengths, micro_batch)
    }

    /// The base's configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.base.config()
    }

    /// The loss of a batch without dropout, of the base alone without an adapter.
    ///
    /// # Errors
    /// The batch does not fit the model.
    pub fn evaluate(&self, lora: Option<&Lora>, batch: &Batch) -> Result<WindowLoss> {
        on!(OnDevice, &self.on_device, resident => {
            let network = &resident.network;
            let factors = lora.map(|lora| network.factors(lora)).transpose()?;
            network.evaluate(batch, self.device.cut(self.base.precision()), factors.as_ref())
        })
    }

    /// The logits after each token of a sequence, of the base alone without an adapter: (tokens,
    /// vocabulary), row by row. It is a pass as in training: int8's outlier columns are those of
    /// all rows, where [`Engine::decode`] chooses them for each row.
    ///
    /// # Errors
    /// No ids, an id outside the vocabulary, more tokens than the model's longest, or an adapter of
    /// another engine.
    pub fn logits(&self, ids: &[u32], adapter: Option<&Adapter>) -> Result<Vec<f32>> {
        let (config, len) = (self.config(), ids.len());
        check_length(len, config)?;
        batch::check_ids(ids, config)?;
        on!(OnDevice, &self.on_device, resident => {
            let adapter = resident.on_device(adapter)?;
            let factors = adapter.as_deref().map(AsRef::as_ref);
            resident.network.all_logits(ids, factors)
        })
    }

    /// The bytes that an adapter takes on the device.
    #[must_use]
    pub fn adapter_bytes(&self, lora: &Lora) -> u64 {
        memory::adapter(lora, self.device)
    }

    /// The largest rank that the device has kernels for in decoding; none on the CPU, which takes
    /// any. A GPU decodes a larger one too, but its sequences one after the other.
    #[must_use]
    pub fn largest_rank(&self) -> Option<usize> {
        match self.device {
            Device::Cpu => None,
            Device::Cuda { .. } => Some(GPU_LARGEST_RANK),
        }
    }

    /// Brings an adapter onto the device, until the last clone of the handle is dropped. The caller
    /// waits for the copy; passes that run meanwhile do not.
    ///
    /// # Errors
    /// The adapter's shapes are not the model's.
    pub fn adapter(&self, lora: &Lora) -> Result<Adapter> {
        on!(OnDevice, &self.on_device, resident => resident.adapter(lora))
    }

    /// An empty cache for one sequence.
    #[must_use]
    pub fn cache(&self) -> Cache {
        on!(OnDevice, &self.on_device, resident => resident.cache())
    }

    /// The bytes that adapters may have on a GPU, of the memory that it has now.
    ///
    /// # Errors
    /// The driver's; [`Error::Input`] on the CPU, which has no plan for them.
    pub fn adapter_capacity(&self) -> Result<u64> {
        Ok(memory::gpu_adapters(self.gpu_memory()?))
    }

    /// The pages of keys and values that all sequences together may have: those that `bytes` hold,
    /// or on a GPU without `bytes` those for which it has memory now, beside as many bytes of
    /// `adapters`.
    ///
    /// # Errors
    /// The driver's; [`Error::Input`] on the CPU without `bytes`.
    pub fn page_capacity(&self, bytes: Option<u64>, adapters: u64) -> Result<usize> {
        let config = self.config();
        if let Some(bytes) = bytes {
            let pages = bytes / memory::page(config, self.device);
            return Ok(usize::try_from(pages).unwrap_or(usize::MAX));
        }
        let memory = self.gpu_memory()?;
        Ok(memory::gpu_pages(config, self.device, memory, adapters))
    }

    fn gpu_memory(&self) -> Result<GpuMemory> {
        let gpu = match self.device {
            Device::Cpu => None,
            Device::Cuda { ordinal, .. } => DeviceName::Cuda { ordinal }.open()?,
        };
        let gpu = gpu.ok_or_else(|| Error::Input("the CPU's memory is not planned".into()))?;
        gpu.memory()
    }

    /// Keeps the full pages of prompts after their sequences end, within these limits, for a
    /// [`Decoder`](crate::decode::Decoder) that shares prefixes. Without a call, none is kept.
    pub fn keep_prefixes(&self, limits: PrefixLimits) {
        on!(OnDevice, &self.on_device, resident => resident.keep_prefixes(limits));
    }

    /// The pages that hold the beginnings of prompts and that no sequence has.
    #[must_use]
    pub fn kept_pages(&self) -> usize {
        on!(OnDevice, &self.on_device, resident => resident.kept_pages())
    }

    /// A cache of one more sequence that begins with the tokens of `cache`, whose full pages both
    /// have.
    pub(crate) fn fork(&self, cache: &Cache) -> Result<Cache> {
        on!(OnDevice, &self.on_device, resident => resident.fork(cache))
    }

    /// Takes into a cache the pages with which a prompt goes on and that another sequence has read;
    /// never the page of its last token, whose logits are needed.
    pub(crate) fn adopt(&self, cache: &mut Cache, root: Root, prompt: &[u32]) {
        on!(OnDevice, &self.on_device, resident => resident.adopt(cache, root, prompt));
    }

    /// Offers to other sequences the full pages of a prompt that a cache has read. A row is
    /// computed from its own sequence alone, whatever the pass held beside it, so that each later
    /// row of another prompt with this beginning is as if that prompt had been read from its first
    /// token.
    pub(crate) fn share(&self, cache: &mut Cache, root: Root, prompt: &[u32]) {
        on!(OnDevice, &self.on_device, resident => resident.share(cache, root, prompt));
    }

    /// Frees the memory of keys and values, with that of kept pages, if no sequence has any.
    ///
    /// # Errors
    /// The device's.
    pub fn free_unused_pages(&self) -> Result<()> {
        on!(OnDevice, &self.on_device, resident => resident.free_unused_pages())
    }

    /// The pages that a sequence of this many tokens has.
    #[must_use]
    pub fn pages_of(tokens: usize) -> usize {
        tokens.div_ceil(PAGE)
    }

    /// The tokens that the pages of all sequences hold.
    #[must_use]
    pub fn cached_tokens(&self) -> usize {
        on!(OnDevice, &self.on_device, resident => resident.used_pages()) * PAGE
    }

    /// Reads the next ids of one sequence as a part of its prompt, and returns the logits after the
    /// last of them, one for each id of the vocabulary.
    ///
    /// # Errors
    /// No ids, an id outside the vocabulary, more tokens than the model's longest, or an adapter or
    /// cache of another engine; the cache is then unchanged.
    pub fn decode(
        &self,
        cache: &mut Cache,
        ids: &[u32],
        adapter: Option<&Adapter>,
    ) -> Result<Vec<f32>> {
        let mut logits = self.decode_batch(&mut [Segment {
            cache,
            ids,
            adapter,
            phase: Phase::Prefill,
        }])?;
        logits
            .pop()
            .ok_or_else(|| Error::Input("no sequence".into()))
    }

    /// [`Engine::decode`] for several sequences in one pass, each with its own adapter; one row of
    /// logits for each. Without sequences there is no pass.
    ///
    /// # Errors
    /// As [`Engine::decode`], for any of them; all caches are then unchanged.
    pub fn decode_batch(&self, segments: &mut [Segment<'_>]) -> Result<Vec<Vec<f32>>> {
        let targets = vec![Targets::default(); segments.len()];
        let decoded = self.decode_scored(segments, &targets)?;
        let logits = decoded
            .into_iter()
            .filter_map(|decoded| match decoded.logits {
                Logits::All(logits) => Some(logits),
                // Only told where the targets allow it.
                Logits::Highest(_) => None,
            });
        Ok(logits.collect())
    }

    /// [`Engine::decode_batch`] with the targets of each segment, of which an answer has none.
    pub(crate) fn decode_scored(
        &self,
        segments: &mut [Segment<'_>],
        targets: &[Targets<'_>],
    ) -> Result<Vec<Decoded>> {
        let begun = self.begin_decoding(segments, targets)?;
        let decoded = begun.finish();
        if decoded.is_err() {
            for segment in segments {
                segment.cache.len -= segment.ids.len();
            }
        }
        decoded
    }

    /// Begins what [`Engine::decode_scored`] computes. The ids count as read at once; if the device
    /// then fails, the caller rewinds the caches.
    ///
    /// # Errors
    /// As [`Engine::decode`], for any of them; all caches are then unchanged.
    pub(crate) fn begin_decoding(
        &self,
        segments: &mut [Segment<'_>],
        targets: &[Targets<'_>],
    ) -> Result<Begun<'_>> {
        let config = self.config();
        for (segment, targets) in segments.iter().zip(targets) {
            if segment.ids.is_empty() {
                return Err(Error::Input("a sequence has no new ids".into()));
            }
            if segment.phase == Phase::Decode && segment.ids.len() != 1 {
                return Err(Error::Input("an answer reads one id in a pass".into()));
            }
            check_length(segment.cache.len + segment.ids.len(), config)?;
            batch::check_ids(segment.ids, config)?;
            batch::check_ids(targets.ids, config)?;
        }
        let begun = match &self.on_device {
            OnDevice::Cpu(resident) => Begun::Cpu(resident.begin(segments, targets)?),
            #[cfg(feature = "cuda")]
            OnDevice::Cuda(resident) => Begun::Cuda(resident.begin(segments, targets)?),
        };
        for segment in segments {
            segment.cache.len += segment.ids.len();
        }
        Ok(begun)
    }
}

fn check_length(tokens: usize, config: &Config) -> Result<()> {
    let longest = config.max_position_embeddings;
    if tokens == 0 {
        return Err(Error::Input("a sequence has no ids".into()));
    }
    if tokens > longest {
        return Err(Error::Input(format!(
            "{tokens} tokens, the model's longest is {longest}"
        )));
    }
    Ok(())
}
