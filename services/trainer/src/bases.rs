//! The configured bases: brought to this machine once, checked whole, and shared by all that need
//! them. Of each base, memory holds one representation, the one that was needed last; the device
//! has one base at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use togi_model::base::quantized_as;
use togi_model::memory::weights;
use togi_model::{Base, Card, Config, Device, Engine, Precision, Processor};
use togi_runtime::config::{BaseConfig, BasesConfig};
use togi_runtime::layout;
use togi_runtime::process::memory;
use togi_runtime::store::folder;
use tokio::sync::OnceCell;
use tracing::info;

use crate::error::{Error, Result};

/// What is known of a base, however it is held.
pub struct BaseInfo {
    /// Its configuration.
    pub config: Config,
    /// Its digest.
    pub digest: String,
    /// Digest of its tokenizer's file.
    pub tokenizer_digest: String,
    /// Where PEFT finds it: its name on the hub, or else its name here.
    pub public_name: String,
    /// What its files are quantized as, if they are: it is held so and not otherwise.
    pub quantized_as: Option<Precision>,
}

/// The configured bases. Clones share what is loaded.
#[derive(Clone)]
pub struct Bases(Arc<Inner>);

struct Inner {
    configured: BasesConfig,
    cache: PathBuf,
    device: Processor,
    weight_use: WeightUse,
    places: Mutex<BTreeMap<String, Arc<Place>>>,
    engine: tokio::sync::Mutex<Option<Held>>,
    /// What the card had for a job when nothing of ours lay on it.
    room: Mutex<Option<u64>>,
}

/// What a process needs bases for.
pub enum WeightUse {
    /// To answer requests: weights are let go after the check.
    Answers,
    /// To train: weights are kept.
    Training {
        /// The card to train on, if the device is one.
        card: Option<Card>,
    },
}

/// The engine that jobs compute with, kept from one to the next.
struct Held {
    base: String,
    engine: Arc<Engine>,
}

/// What this process has of one base.
#[derive(Default)]
struct Place {
    facts: OnceCell<Arc<BaseInfo>>,
    weights: Mutex<Option<Arc<Base>>>,
    /// Held while the base is read: twice at once, memory would hold it twice.
    turn: tokio::sync::Mutex<()>,
}

/// A base as it was read.
struct Read {
    base: Base,
    quantized_as: Option<Precision>,
}

impl Place {
    fn weights(&self) -> std::sync::MutexGuard<'_, Option<Arc<Base>>> {
        self.weights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bases {
    /// Returns the bases of the configuration, for jobs on a device.
    #[must_use]
    pub fn new(
        configured: BasesConfig,
        cache: PathBuf,
        device: Processor,
        weight_use: WeightUse,
    ) -> Bases {
        Bases(Arc::new(Inner {
            configured,
            cache,
            device,
            weight_use,
            places: Mutex::default(),
            engine: tokio::sync::Mutex::default(),
            room: Mutex::default(),
        }))
    }

    /// Returns a base's configuration.
    ///
    /// # Errors
    /// `NotFound` with field `base`.
    pub fn configured(&self, name: &str) -> Result<&BaseConfig> {
        layout::validate_name("base", name)?;
        self.0.configured.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.0.configured.keys().map(String::as_str).collect();
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            let message = format!("base {name:?} is not configured; configured are: {known}");
            togi_runtime::Error::not_found(message)
                .with_field("base")
                .into()
        })
    }

    /// Returns what is known of a base, after its files were read and checked: the first time takes
    /// as long as that, in the precision of who asks first.
    ///
    /// # Errors
    /// `NotFound` with field `base`; `FailedPrecondition` with field `base` if its files are no
    /// base, with field `recipe.base_precision` if they are quantized otherwise.
    pub async fn facts(&self, name: &str, precision: Precision) -> Result<Arc<BaseInfo>> {
        let configured = self.configured(name)?;
        let place = self.place(name);
        let read = async || {
            let _turn = place.turn.lock().await;
            let read = self.read(name, configured, precision).await?;
            let facts = facts(name, configured, &read)?;
            if let WeightUse::Training { .. } = self.0.weight_use {
                *place.weights() = Some(Arc::new(read.base));
            }
            Ok::<_, Error>(Arc::new(facts))
        };
        // An error is not kept: the next request tries again.
        let facts = place.facts.get_or_try_init(read).await?;
        match facts.quantized_as {
            Some(held) if held != precision => Err(cannot_be(
                precision,
                &format!("the folder is quantized as {} already", held.name()),
            )),
            _ => Ok(Arc::clone(facts)),
        }
    }

    /// Returns the engine over a base on the worker's device. The last one is kept; another base,
    /// or another representation of it, takes its place. Who computes with it must have let it go
    /// by then.
    ///
    /// # Errors
    /// As [`Bases::facts`]; the device's, with its figures, if the base does not fit.
    pub async fn engine(&self, name: &str, precision: Precision) -> Result<Arc<Engine>> {
        let WeightUse::Training { card } = &self.0.weight_use else {
            return Err(togi_runtime::Error::internal("this process does not train").into());
        };
        let mut held = self.0.engine.lock().await;
        if let Some(held) = &*held
            && held.base == name
            && held.engine.base().precision() == precision
        {
            return Ok(Arc::clone(&held.engine));
        }
        held.take();
        if let Some(card) = card {
            *self.room() = Some(card.memory()?.available);
        }
        let base = self.weights(name, precision).await?;
        let device = self.0.device.device(precision);
        let making = tokio::task::spawn_blocking(move || Engine::on(base, device));
        let engine = making.await.map_err(|_| Error::ThreadGone)??;
        let engine = Arc::new(engine);
        *held = Some(Held {
            base: name.to_owned(),
            engine: Arc::clone(&engine),
        });
        Ok(engine)
    }

    /// Lets the kept engine go: after a failure, which may have been its device's, the next job has
    /// a new one.
    pub async fn let_go(&self) {
        self.0.engine.lock().await.take();
    }

    /// Returns how much memory of its device this process has for a job over a base: what its
    /// worker holds itself, it will have let go by then. `None` if nobody knows.
    #[must_use]
    pub fn available(&self, name: &str) -> Option<u64> {
        match (self.0.device, self.card()) {
            (Processor::Cuda { .. }, card) => {
                let room = *self.room();
                room.or_else(|| Some(card?.memory().ok()?.available))
            }
            (Processor::Cpu, _) => {
                let place = self.place(name);
                let resident = match &*place.weights() {
                    Some(base) => weights(base.config(), base.precision(), Device::Cpu),
                    None => 0,
                };
                memory::available_bytes().map(|bytes| bytes.saturating_add(resident))
            }
        }
    }

    /// Returns the device's name, a card's maker's for it included.
    #[must_use]
    pub fn device(&self) -> String {
        match self.card() {
            None => self.0.device.to_string(),
            Some(card) => format!("{} ({})", self.0.device, card.name()),
        }
    }

    fn card(&self) -> Option<&Card> {
        match &self.0.weight_use {
            WeightUse::Training { card } => card.as_ref(),
            WeightUse::Answers => None,
        }
    }

    fn room(&self) -> std::sync::MutexGuard<'_, Option<u64>> {
        self.0.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a base's weights. If another representation of them is held, it is let go first.
    async fn weights(&self, name: &str, precision: Precision) -> Result<Arc<Base>> {
        let configured = self.configured(name)?;
        let place = self.place(name);
        let _turn = place.turn.lock().await;
        if let Some(base) = &*place.weights()
            && base.precision() == precision
        {
            return Ok(Arc::clone(base));
        }
        place.weights().take();
        let base = Arc::new(self.read(name, configured, precision).await?.base);
        *place.weights() = Some(Arc::clone(&base));
        Ok(base)
    }

    /// Returns in which precision this process holds a base's weights, if it does.
    #[must_use]
    pub fn held(&self, name: &str) -> Option<Precision> {
        let place = self.place(name);
        place.weights().as_ref().map(|base| base.precision())
    }

    fn place(&self, name: &str) -> Arc<Place> {
        let places = self.0.places.lock();
        let mut places = places.unwrap_or_else(PoisonError::into_inner);
        Arc::clone(places.entry(name.to_owned()).or_default())
    }

    async fn read(
        &self,
        name: &str,
        configured: &BaseConfig,
        precision: Precision,
    ) -> Result<Read> {
        let local = folder::materialize(configured, &self.0.cache).await;
        let local = local.map_err(|error| error.with_field("base"))?;
        info!(
            base = name,
            precision = precision.name(),
            "reading the base"
        );
        let device = self.0.device;
        let reading = tokio::task::spawn_blocking(move || {
            Ok(Read {
                quantized_as: quantized_as(&local)?,
                base: device.read(&local, precision)?,
            })
        });
        let read = reading
            .await
            .map_err(|_| Error::unfit("base", "could not be read"))?;
        read.map_err(|error| match error {
            togi_model::Error::Precision { precision, reason } => cannot_be(precision, &reason),
            error => Error::unfit("base", format!("{name:?} is not usable: {error}")),
        })
    }
}

fn cannot_be(precision: Precision, reason: &str) -> Error {
    let reason = format!("cannot be {}: {reason}", precision.name());
    Error::unfit("recipe.base_precision", reason)
}

/// What a base says of itself; its tokenizer must fit its network.
fn facts(name: &str, configured: &BaseConfig, read: &Read) -> Result<BaseInfo> {
    let base = &read.base;
    let Some(tokenizer) = base.tokenizer() else {
        return Err(Error::unfit(
            "base",
            format!("{name:?} has no spiece.model or tokenizer.model"),
        ));
    };
    let tokenizer = togi_tokens::Tokenizer::from_bytes(tokenizer).map_err(|error| {
        Error::unfit(
            "base",
            format!("{name:?} has a tokenizer that is none: {error}"),
        )
    })?;
    let (pieces, ids) = (tokenizer.vocab_size(), base.config().vocab_size);
    if pieces > ids {
        return Err(Error::unfit(
            "base",
            format!("{name:?} has {pieces} pieces in its tokenizer and {ids} ids in its network"),
        ));
    }
    Ok(BaseInfo {
        config: base.config().clone(),
        digest: base.digest().to_owned(),
        tokenizer_digest: tokenizer.digest().to_owned(),
        public_name: public_name(name, &configured.url),
        quantized_as: read.quantized_as,
    })
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

    const TRAINING: WeightUse = WeightUse::Training { card: None };

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
            bos_token_id: None,
            eos_token_id: None,
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
        let bases = Bases::new(configured, cache, Processor::Cpu, TRAINING);
        (folder, bases)
    }

    #[tokio::test]
    async fn memory_holds_one_representation_of_a_base() {
        let (_folder, bases) = bases();
        assert_eq!(bases.held("tiny"), None);
        bases.facts("tiny", Precision::F32).await.unwrap();
        // Who only wants the facts loads nothing anew.
        bases.facts("tiny", Precision::Nf4).await.unwrap();
        assert_eq!(bases.held("tiny"), Some(Precision::F32));
        let full = bases.engine("tiny", Precision::F32).await.unwrap();
        let again = bases.engine("tiny", Precision::F32).await.unwrap();
        assert!(Arc::ptr_eq(&full, &again));
        let gone = Arc::downgrade(full.base());
        drop((full, again));
        let quantized = bases.engine("tiny", Precision::Nf4).await.unwrap();
        assert_eq!(quantized.base().precision(), Precision::Nf4);
        assert_eq!(bases.held("tiny"), Some(Precision::Nf4));
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
        let bases = Bases::new(configured, cache, Processor::Cpu, TRAINING);
        // The same is said before it was read, and after.
        let first = bases.facts("packed", Precision::F32).await.err().unwrap();
        bases.facts("packed", Precision::Nf4).await.unwrap();
        let second = bases.facts("packed", Precision::F32).await.err().unwrap();
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
