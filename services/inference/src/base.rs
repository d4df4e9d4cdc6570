//! The base: brought to a local folder, read once, with its tokenizer. Waits for a source that does not answer; ends for one that
//! is wrong.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use togi_model::{Base, Engine, Precision, Processor};
use togi_runtime::Stopper;
use togi_runtime::config::BaseConfig;
use togi_runtime::store::folder;
use togi_tokens::Tokenizer;

use crate::error::{Error, Result};

/// Time between two attempts to reach the base's source.
const RETRY: Duration = Duration::from_secs(5);

/// A base in memory.
pub(crate) struct Loaded {
    pub(crate) network: Arc<Engine>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) digest: String,
    /// Where it computes.
    pub(crate) device: Processor,
    /// How it is held: adapters must have been trained over the same.
    pub(crate) precision: Precision,
    /// Its files.
    pub(crate) folder: PathBuf,
    /// Ends an answer.
    pub(crate) eos: Option<u32>,
}

/// How a base is to be held, and where it computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceChoice {
    pub(crate) device: Processor,
    pub(crate) precision: Precision,
}

/// Loads the base; None when stopped meanwhile.
pub(crate) async fn load(
    name: &str,
    config: &BaseConfig,
    choice: DeviceChoice,
    cache: &Path,
    stopper: &Stopper,
) -> Result<Option<Loaded>> {
    loop {
        let Some(folder) = stopper.run(folder::materialize(config, cache)).await else {
            return Ok(None);
        };
        match folder {
            Ok(folder) => return read(name, folder, choice).await.map(Some),
            Err(error) if error.class().retryable() => {
                tracing::warn!(
                    base = name,
                    error = error.chain(),
                    "base cannot be reached; waiting"
                );
            }
            Err(error) => return Err(error.into()),
        }
        if !stopper.wait(RETRY).await {
            return Ok(None);
        }
    }
}

async fn read(name: &str, folder: PathBuf, choice: DeviceChoice) -> Result<Loaded> {
    let owned = name.to_owned();
    let loaded = tokio::task::spawn_blocking(move || read_folder(&owned, folder, choice))
        .await
        .map_err(|error| Error::Broken(format!("loading the base ended: {error}")))??;
    let parameters = loaded.network.config().parameters();
    tracing::info!(
        base = name,
        digest = loaded.digest,
        precision = choice.precision.name(),
        device = %choice.device,
        parameters,
        "base loaded"
    );
    Ok(loaded)
}

fn read_folder(name: &str, folder: PathBuf, choice: DeviceChoice) -> Result<Loaded> {
    let base = choice.device.read(&folder, choice.precision);
    let base = base.map_err(|error| unusable(name, error.to_string()))?;
    with_tokenizer(name, folder, base, choice.device)
}

/// Brings a base onto its device, and together with the tokenizer in its folder.
///
/// # Errors
/// [`Error::Base`] where there is none, or one that does not fit; the device's refusal of the base.
pub(crate) fn with_tokenizer(
    name: &str,
    folder: PathBuf,
    base: Base,
    device: Processor,
) -> Result<Loaded> {
    let unusable = |reason: String| unusable(name, reason);
    let bytes = base
        .tokenizer()
        .ok_or_else(|| unusable("its folder has no spiece.model and no tokenizer.model".into()))?;
    let tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| unusable(error.to_string()))?;
    let (pieces, rows) = (tokenizer.vocab_size(), base.config().vocab_size);
    if pieces > rows {
        return Err(unusable(format!(
            "its tokenizer has {pieces} pieces, its network {rows}"
        )));
    }
    let precision = base.precision();
    let eos = tokenizer.eos().or(base.config().eos_token_id);
    let network = Engine::on(Arc::new(base), device.device(precision));
    let network = network.map_err(|error| match error {
        error @ togi_model::Error::Device { .. } => Error::Device(error),
        other => unusable(other.to_string()),
    })?;
    // After the engine was made: of files that only a card has read, it is waited for.
    let digest = network.base().digest().to_owned();
    Ok(Loaded {
        network: Arc::new(network),
        tokenizer: Arc::new(tokenizer),
        digest,
        device,
        precision,
        folder,
        eos,
    })
}

fn unusable(name: &str, reason: String) -> Error {
    Error::Base {
        name: name.to_owned(),
        reason,
    }
}
