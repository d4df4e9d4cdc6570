//! The configured bases: fetched once, checked whole and shared. Memory holds one precision of each
//! base, the one that was needed last; the device holds one base at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use togi_base::CheckedBase;
use togi_base::checked::Fetched;
use togi_common::nearest;
use togi_model::memory::weights;
use togi_model::{Base, Config, Device, DeviceName, Engine, Gpu, Precision};
use togi_runtime::config::{BaseConfig, BasesConfig};
use togi_runtime::layout;
use togi_runtime::process::memory;
use tokio::sync::RwLock;

use crate::error::{Error, Result};

/// The properties of a base that do not depend on its precision.
pub(crate) struct BaseInfo {
    /// Its configuration.
    pub config: Config,
    /// Its digest.
    pub digest: String,
    /// Digest of its tokenizer's file.
    pub tokenizer_digest: String,
    /// The name by which PEFT loads it: its name on the hub, or its configured name.
    pub public_name: String,
    /// Where its files are from: a URL, with the commit if it is a hub's.
    pub origin: String,
    /// The precision of quantized files; such a base is held in no other.
    pub quantized_as: Option<Precision>,
}

/// The configured bases. Clones share what is loaded.
#[derive(Clone)]
pub(crate) struct Bases(Arc<Inner>);

struct Inner {
    bases: BTreeMap<String, Slot>,
    cache: PathBuf,
    device: DeviceName,
    weight_use: WeightUse,
    engine: tokio::sync::Mutex<Option<Loaded>>,
    /// Bytes that the GPU had available when this process held nothing on it.
    gpu_available: Mutex<Option<u64>>,
}

/// How long a process keeps the weights of its bases.
pub(crate) enum WeightUse {
    /// They are dropped after the check: the process only answers requests.
    Answers,
    /// They are kept for training.
    Training {
        /// The GPU to train on; `None` on the CPU.
        gpu: Option<Gpu>,
    },
}

/// The engine that jobs compute with, kept from one to the next.
struct Loaded {
    base: String,
    engine: Arc<Engine>,
}

/// One base. Its properties are outside the lock, so that requests are checked while a job loads
/// the weights in another precision.
struct Slot {
    config: BaseConfig,
    info: OnceLock<Arc<BaseInfo>>,
    /// Locked for writing while the files are read, so that memory never holds the base twice.
    weights: RwLock<Option<Arc<Base>>>,
}

impl Bases {
    /// Returns the bases of the configuration, for jobs on a device.
    #[must_use]
    pub(crate) fn new(
        configured: BasesConfig,
        cache: PathBuf,
        device: DeviceName,
        weight_use: WeightUse,
    ) -> Self {
        let slot = |config| Slot {
            config,
            info: OnceLock::new(),
            weights: RwLock::default(),
        };
        let bases = configured.into_iter();
        Self(Arc::new(Inner {
            bases: bases.map(|(name, config)| (name, slot(config))).collect(),
            cache,
            device,
            weight_use,
            engine: tokio::sync::Mutex::default(),
            gpu_available: Mutex::default(),
        }))
    }

    /// Checks that a base is configured.
    ///
    /// # Errors
    /// `NotFound` with field `base`.
    pub(crate) fn check_name(&self, name: &str) -> Result<()> {
        self.slot(name).map(drop)
    }

    /// Returns the properties of a base. The first call reads and checks its files, in the
    /// requested precision.
    ///
    /// # Errors
    /// `NotFound` with field `base`; `FailedPrecondition` with field `base` if its files are not a
    /// usable base, with field `recipe.base_precision` if they are quantized otherwise.
    pub(crate) async fn info(&self, name: &str, precision: Precision) -> Result<Arc<BaseInfo>> {
        let slot = self.slot(name)?;
        let info = match slot.info.get() {
            Some(info) => info,
            None => self.first_info(name, slot, precision).await?,
        };
        match info.quantized_as {
            Some(held) if held != precision => Err(cannot_be(
                precision.name(),
                &format!("the folder is quantized as {} already", held.name()),
            )),
            _ => Ok(Arc::clone(info)),
        }
    }

    async fn first_info<'a>(
        &self,
        name: &str,
        slot: &'a Slot,
        precision: Precision,
    ) -> Result<&'a Arc<BaseInfo>> {
        let mut weights = slot.weights.write().await;
        if let Some(info) = slot.info.get() {
            return Ok(info);
        }
        // An error is not kept: the next request tries again.
        let fetched = self.read(name, slot, precision).await?;
        let CheckedBase { base, tokenizer } = fetched.checked;
        // The digest waits for the threads that hash the base's files.
        let hashing = tokio::task::spawn_blocking(move || (base.digest().to_owned(), base));
        let (digest, base) = hashing.await.map_err(|_| Error::Panicked)?;
        let info = BaseInfo {
            config: base.config().clone(),
            digest,
            tokenizer_digest: tokenizer.digest().to_owned(),
            public_name: public_name(name, &slot.config.url),
            origin: fetched.origin,
            quantized_as: fetched.quantized_as,
        };
        if let WeightUse::Training { .. } = self.0.weight_use {
            *weights = Some(Arc::new(base));
        }
        Ok(slot.info.get_or_init(|| Arc::new(info)))
    }

    /// Returns the engine over a base on the worker's device. The last one is kept; another base,
    /// or another precision of it, replaces it. Callers must have dropped the old engine by then.
    ///
    /// # Errors
    /// As [`Bases::info`]; the device's, with its figures, if the base does not fit.
    pub(crate) async fn engine(&self, name: &str, precision: Precision) -> Result<Arc<Engine>> {
        let WeightUse::Training { gpu } = &self.0.weight_use else {
            return Err(togi_runtime::Error::internal("this process does not train").into());
        };
        let mut loaded = self.0.engine.lock().await;
        if let Some(loaded) = &*loaded
            && loaded.base == name
            && loaded.engine.base().precision() == precision
        {
            return Ok(Arc::clone(&loaded.engine));
        }
        loaded.take();
        if let Some(gpu) = gpu {
            *self.0.gpu_available.lock() = Some(gpu.memory()?.available);
        }
        let base = self.weights(name, precision).await?;
        let device = self.0.device.device(precision);
        let making = tokio::task::spawn_blocking(move || Engine::on(base, device));
        let engine = Arc::new(making.await.map_err(|_| Error::Panicked)??);
        *loaded = Some(Loaded {
            base: name.to_owned(),
            engine: Arc::clone(&engine),
        });
        Ok(engine)
    }

    /// Drops the kept engine: after a failure, which may be the device's, the next job makes a new
    /// one.
    pub(crate) async fn release_engine(&self) {
        self.0.engine.lock().await.take();
    }

    /// Returns the device memory for a job over a base, in bytes. Memory that the worker holds
    /// itself counts as free. `None` if unknown.
    #[must_use]
    pub(crate) fn available(&self, name: &str) -> Option<u64> {
        match (self.0.device, self.gpu()) {
            (DeviceName::Cuda { .. }, gpu) => {
                let gpu_available = *self.0.gpu_available.lock();
                gpu_available.or_else(|| Some(gpu?.memory().ok()?.available))
            }
            (DeviceName::Cpu, _) => {
                let resident = self.resident(name).map_or(0, |base| {
                    weights(base.config(), base.precision(), Device::Cpu)
                });
                memory::available_bytes().map(|bytes| bytes.saturating_add(resident))
            }
        }
    }

    /// Returns the device's name, with a GPU's product name.
    #[must_use]
    pub(crate) fn device(&self) -> String {
        match self.gpu() {
            None => self.0.device.to_string(),
            Some(gpu) => format!("{} ({})", self.0.device, gpu.name()),
        }
    }

    fn gpu(&self) -> Option<&Gpu> {
        match &self.0.weight_use {
            WeightUse::Training { gpu } => gpu.as_ref(),
            WeightUse::Answers => None,
        }
    }

    /// Returns a base's weights. Weights in another precision are dropped first.
    async fn weights(&self, name: &str, precision: Precision) -> Result<Arc<Base>> {
        let slot = self.slot(name)?;
        let mut weights = slot.weights.write().await;
        if let Some(base) = &*weights
            && base.precision() == precision
        {
            return Ok(Arc::clone(base));
        }
        weights.take();
        let fetched = self.read(name, slot, precision).await?;
        Ok(Arc::clone(weights.insert(Arc::new(fetched.checked.base))))
    }

    /// Returns the weights of a base that memory holds; none while they are being read.
    fn resident(&self, name: &str) -> Option<Arc<Base>> {
        let weights = self.0.bases.get(name)?.weights.try_read().ok()?;
        weights.clone()
    }

    fn slot(&self, name: &str) -> Result<&Slot> {
        layout::validate_name("base", name)?;
        self.0.bases.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.0.bases.keys().map(String::as_str).collect();
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            let near = nearest::suggestion(name, self.0.bases.keys().map(String::as_str));
            let message = format!("base {name:?} is not configured; configured are: {known}{near}");
            togi_runtime::Error::not_found(message)
                .with_field("base")
                .into()
        })
    }

    async fn read(&self, name: &str, slot: &Slot, precision: Precision) -> Result<Fetched> {
        let precision_name = precision.name();
        tracing::info!(base = name, precision = precision_name, "reading the base");
        let reading = CheckedBase::fetch(&slot.config, &self.0.cache, self.0.device, precision);
        reading.await.map_err(|error| match error {
            togi_base::Error::Model(togi_model::Error::Precision { precision, reason }) => {
                cannot_be(precision, &reason)
            }
            error => error.of_base(name).into(),
        })
    }
}

fn cannot_be(precision: &str, reason: &str) -> Error {
    let reason = format!("cannot be {precision}: {reason}");
    Error::unfit("recipe.base_precision", reason)
}

fn public_name(name: &str, url: &str) -> String {
    match url.strip_prefix("hf://") {
        Some(path) => path.split('@').next().unwrap_or(path).to_owned(),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use togi_model::Activation;

    use super::*;

    const TRAINING: WeightUse = WeightUse::Training { gpu: None };

    /// A base in a folder, and the bases of a worker that has no other.
    fn bases() -> (tempfile::TempDir, Bases) {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            vocab_size: 1024,
            hidden_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            intermediate_size: 32,
            hidden_act: Activation::Gelu,
            rotary_pct: 1.0,
            rotary_emb_base: 10_000.0,
            max_position_embeddings: 64,
            layer_norm_eps: 1e-5,
            use_parallel_residual: false,
            tie_word_embeddings: false,
            attention_bias: true,
            attention_dropout: 0.0,
            hidden_dropout: 0.0,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
        };
        togi_model::base::write_random(folder.path(), &config, 7).unwrap();
        let tokenizer = include_bytes!("../../../crates/tokens/tests/fixtures/plain.model");
        std::fs::write(folder.path().join("spiece.model"), tokenizer).unwrap();
        let configured = BaseConfig {
            url: format!("file://{}", folder.path().display()),
            options: BTreeMap::new(),
            precision: None,
        };
        let configured = BTreeMap::from([("tiny".to_owned(), configured)]);
        let cache = folder.path().join("cache");
        let bases = Bases::new(configured, cache, DeviceName::Cpu, TRAINING);
        (folder, bases)
    }

    #[tokio::test]
    async fn memory_holds_one_representation_of_a_base() {
        let (_folder, bases) = bases();
        let held = || Some(bases.resident("tiny")?.precision());
        assert_eq!(held(), None);
        bases.info("tiny", Precision::F32).await.unwrap();
        // Reading the properties loads nothing again.
        bases.info("tiny", Precision::Nf4).await.unwrap();
        assert_eq!(held(), Some(Precision::F32));
        let full = bases.engine("tiny", Precision::F32).await.unwrap();
        let again = bases.engine("tiny", Precision::F32).await.unwrap();
        assert!(Arc::ptr_eq(&full, &again));
        let gone = Arc::downgrade(full.base());
        drop((full, again));
        let quantized = bases.engine("tiny", Precision::Nf4).await.unwrap();
        assert_eq!(quantized.base().precision(), Precision::Nf4);
        assert_eq!(held(), Some(Precision::Nf4));
        assert!(gone.upgrade().is_none(), "the other was let go");
    }

    #[tokio::test]
    async fn files_that_are_quantized_are_held_so_and_not_otherwise() {
        let (folder, _) = bases();
        let quantized = folder.path().join("quantized");
        togi_model::base::write_quantized(folder.path(), &quantized, Precision::Nf4).unwrap();
        let configured = BaseConfig {
            url: format!("file://{}", quantized.display()),
            options: BTreeMap::new(),
            precision: None,
        };
        let configured = BTreeMap::from([("packed".to_owned(), configured)]);
        let cache = folder.path().join("cache");
        let bases = Bases::new(configured, cache, DeviceName::Cpu, TRAINING);
        // The error is the same before and after the base was read.
        let first = bases.info("packed", Precision::F32).await.err().unwrap();
        bases.info("packed", Precision::Nf4).await.unwrap();
        let second = bases.info("packed", Precision::F32).await.err().unwrap();
        assert_eq!(first.to_string(), second.to_string());
        let says = "recipe.base_precision cannot be f32: the folder is quantized as nf4";
        assert!(first.to_string().starts_with(says), "{first}");
    }

    #[test]
    fn a_base_of_the_hub_keeps_its_name_there() {
        assert_eq!(
            public_name("rinna", "hf://rinna/japanese-gpt-neox-3.6b@main"),
            "rinna/japanese-gpt-neox-3.6b"
        );
        assert_eq!(public_name("demo", "file:///bases/demo"), "demo");
    }
}
