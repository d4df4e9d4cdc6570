//! What callers hold: a base on its device, training on batches, decoding with caches.

#[cfg(feature = "bench")]
pub mod bench;
mod passes;

use std::ops::Range;
use std::sync::Arc;

use crate::base::Base;
use crate::batch::{self, Batch, WindowLoss};
use crate::config::Config;
use crate::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::cuda::Cuda;
use crate::device::Device;
#[cfg(not(feature = "cuda"))]
use crate::device::not_built;
use crate::error::{Error, Result};
use crate::lora::Lora;
use crate::network::Network;
use crate::network::factors::Factors;
use crate::ops::Ops;
use crate::ops::decoding::Decode;
use passes::Share;

/// A base that computes. It is `Send + Sync`; one thread should own it, because a pass uses every
/// core.
pub struct Engine {
    base: Arc<Base>,
    networks: Networks,
    device: Device,
}

/// The network on one of the devices.
pub(crate) enum Networks {
    Cpu(Box<Network<Cpu>>),
    #[cfg(feature = "cuda")]
    Cuda(Box<Network<Cuda>>),
}

/// An adapter on the engine's device, ready to decode with.
pub struct Adapter {
    adapters: Adapters,
}

enum Adapters {
    Cpu(Factors<<Cpu as Ops>::Array>),
    #[cfg(feature = "cuda")]
    Cuda(Factors<<Cuda as Ops>::Array>),
}

/// The keys and values of one sequence; it grows as the sequence does.
pub struct Cache {
    caches: Caches,
    len: usize,
}

enum Caches {
    Cpu(<Cpu as Decode>::Cache),
    #[cfg(feature = "cuda")]
    Cuda(<Cuda as Decode>::Cache),
}

/// Whether every device repeats a pass bit for bit: no kernel adds in an order that depends on
/// timing. One that did would be named here.
pub const BIT_EXACT: bool = true;

/// Does the same with whatever device's share an enum has.
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

/// One sequence's share of a decoding pass.
pub struct Step<'a> {
    /// The sequence's past.
    pub cache: &'a mut Cache,
    /// What comes next in it: the prompt, or the last token; not empty.
    pub ids: &'a [u32],
    /// The adapter that it runs with, none for the base alone.
    pub adapter: Option<&'a Adapter>,
}

impl Engine {
    /// An engine over a base, on the CPU. Weights are shared, not copied.
    ///
    /// # Errors
    /// The base lacks a tensor (a loaded one does not).
    pub fn new(base: Arc<Base>) -> Result<Self> {
        Self::on(base, Device::Cpu)
    }

    /// An engine over a base, on a device. Linear weights are there in the base's precision; a
    /// card's `float` is the type of activations and of everything that is not quantized, and is
    /// usually the precision's own: f32 for f32, fp16 for fp16 (whose training scales its losses),
    /// and bf16 for all others.
    ///
    /// # Errors
    /// As [`Engine::new`]; [`Error::Device`] if there is no such device, or it cannot take the
    /// base. Of a base that was only opened: one of its tensors has values that are not finite or
    /// do not fit.
    pub fn on(base: Arc<Base>, device: Device) -> Result<Self> {
        let networks = match device {
            Device::Cpu => Networks::Cpu(Box::new(Network::new(Cpu, &base)?)),
            #[cfg(feature = "cuda")]
            Device::Cuda { ordinal, float } => {
                let cuda = Cuda::new(ordinal, float, &base)?;
                Networks::Cuda(Box::new(Network::new(cuda, &base)?))
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda { ordinal, .. } => return Err(not_built(ordinal)),
        };
        Ok(Self {
            base,
            networks,
            device,
        })
    }

    pub(crate) fn networks(&self) -> &Networks {
        &self.networks
    }

    /// Counts the most memory that the engine's card has lent out from now on.
    ///
    /// # Errors
    /// The device's.
    pub fn forget_peak(&self) -> Result<()> {
        match &self.networks {
            Networks::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Networks::Cuda(network) => network.ops().forget_peak(),
        }
    }

    /// Bytes that the engine's card has lent out at most so far, and bytes that it has; none of the
    /// CPU.
    #[must_use]
    pub fn device_memory(&self) -> Option<(u64, u64)> {
        match &self.networks {
            Networks::Cpu(_) => None,
            #[cfg(feature = "cuda")]
            Networks::Cuda(network) => network.ops().memory(),
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

    /// The loss of a batch without gradients or dropout, of the base alone if there is no adapter.
    ///
    /// # Errors
    /// The batch does not fit the model.
    pub fn evaluate(&self, lora: Option<&Lora>, batch: &Batch) -> Result<WindowLoss> {
        on!(Networks, &self.networks, network => {
            let factors = lora.map(|lora| network.factors(lora)).transpose()?;
            network.evaluate(batch, self.device.cut(self.base.precision()), factors.as_ref())
        })
    }

    /// The logits after each token of a sequence, of the base alone if there is no adapter:
    /// (tokens, vocabulary), row by row.
    ///
    /// # Errors
    /// No ids, an id outside the vocabulary, or more tokens than the model's longest.
    pub fn logits(&self, ids: &[u32], adapter: Option<&Adapter>) -> Result<Vec<f32>> {
        let (config, len) = (self.config(), ids.len());
        check_length(len, config)?;
        batch::check_ids(ids, config)?;
        on!(Networks, &self.networks, network => {
            let factors = adapter.map(|adapter| adapter.on(network)).transpose()?;
            network.all_logits(ids, factors)
        })
    }

    /// Brings an adapter onto the device.
    ///
    /// # Errors
    /// The adapter's shapes are not the model's.
    pub fn adapter(&self, lora: &Lora) -> Result<Adapter> {
        let adapters = match &self.networks {
            Networks::Cpu(network) => Adapters::Cpu(network.factors(lora)?),
            #[cfg(feature = "cuda")]
            Networks::Cuda(network) => Adapters::Cuda(network.factors(lora)?),
        };
        Ok(Adapter { adapters })
    }

    /// An empty cache for one sequence.
    #[must_use]
    pub fn cache(&self) -> Cache {
        let config = self.config();
        let (layers, heads) = (config.num_hidden_layers, config.num_attention_heads);
        let caches = match &self.networks {
            Networks::Cpu(network) => Caches::Cpu(network.ops().cache(layers, heads)),
            #[cfg(feature = "cuda")]
            Networks::Cuda(network) => Caches::Cuda(network.ops().cache(layers, heads)),
        };
        Cache { caches, len: 0 }
    }

    /// Takes the next tokens of one sequence and returns the logits after the last of them, one for
    /// each id of the vocabulary. The first call takes the prompt (prefill), later ones a token
    /// each; any split gives the same result.
    ///
    /// # Errors
    /// No ids, an id outside the vocabulary, or more tokens than the model's longest; the cache is
    /// then unchanged.
    pub fn decode(
        &self,
        cache: &mut Cache,
        ids: &[u32],
        adapter: Option<&Adapter>,
    ) -> Result<Vec<f32>> {
        let mut logits = self.decode_batch(&mut [Step {
            cache,
            ids,
            adapter,
        }])?;
        logits
            .pop()
            .ok_or_else(|| Error::Input("no sequence".into()))
    }

    /// [`Engine::decode`] for several sequences in one pass, each with its own adapter; one row of
    /// logits for each.
    ///
    /// # Errors
    /// As [`Engine::decode`], for any of them; all caches are then unchanged.
    pub fn decode_batch(&self, steps: &mut [Step<'_>]) -> Result<Vec<Vec<f32>>> {
        let config = self.config();
        for step in steps.iter() {
            if step.ids.is_empty() {
                return Err(Error::Input("a sequence has no new ids".into()));
            }
            check_length(step.cache.len + step.ids.len(), config)?;
            batch::check_ids(step.ids, config)?;
        }
        let logits = on!(Networks, &self.networks, network => {
            let shares: Result<_> = steps.iter_mut().map(|step| step.share(network)).collect();
            network.decode(shares?)
        })?;
        for step in steps {
            step.cache.len += step.ids.len();
        }
        Ok(logits)
    }
}

impl Step<'_> {
    fn share<O: Held>(&mut self, network: &Network<O>) -> Result<Share<'_, O>> {
        Ok(Share {
            ids: self.ids,
            past: self.cache.len,
            factors: self
                .adapter
                .map(|adapter| adapter.on(network))
                .transpose()?,
            cache: O::cache_of(&mut self.cache.caches)?,
        })
    }
}

impl Adapter {
    fn on<O: Held>(&self, _: &Network<O>) -> Result<&Factors<O::Array>> {
        O::factors_of(&self.adapters)
    }
}

/// A device's share of what callers hold.
trait Held: Decode {
    fn factors_of(adapters: &Adapters) -> Result<&Factors<Self::Array>>;
    fn cache_of(caches: &mut Caches) -> Result<&mut Self::Cache>;
}

impl Held for Cpu {
    fn factors_of(adapters: &Adapters) -> Result<&Factors<Self::Array>> {
        match adapters {
            Adapters::Cpu(factors) => Ok(factors),
            #[cfg(feature = "cuda")]
            Adapters::Cuda(_) => Err(elsewhere()),
        }
    }

    fn cache_of(caches: &mut Caches) -> Result<&mut Self::Cache> {
        match caches {
            Caches::Cpu(cache) => Ok(cache),
            #[cfg(feature = "cuda")]
            Caches::Cuda(_) => Err(elsewhere()),
        }
    }
}

#[cfg(feature = "cuda")]
impl Held for Cuda {
    fn factors_of(adapters: &Adapters) -> Result<&Factors<Self::Array>> {
        match adapters {
            Adapters::Cuda(factors) => Ok(factors),
            Adapters::Cpu(_) => Err(elsewhere()),
        }
    }

    fn cache_of(caches: &mut Caches) -> Result<&mut Self::Cache> {
        match caches {
            Caches::Cuda(cache) => Ok(cache),
            Caches::Cpu(_) => Err(elsewhere()),
        }
    }
}

#[cfg(feature = "cuda")]
fn elsewhere() -> Error {
    Error::Input("an adapter or cache is of an engine on another device".into())
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
