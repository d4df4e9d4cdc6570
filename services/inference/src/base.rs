//! The base and its tokenizer: copied to a local folder if necessary, then read once. A source that
//! does not answer is retried; a wrong one is an error.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use togi_base::CheckedBase;
use togi_base::checked::Fetched;
use togi_model::{DeviceName, Engine, Precision};
use togi_runtime::Context;
use togi_runtime::config::BaseConfig;
use togi_runtime::life::backoff::Backoff;
use togi_tokens::Tokenizer;

use crate::error::{Error, Result, with_cause};

/// Waits between two attempts to reach the base's source.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));

/// A base in memory, on its device.
pub(crate) struct Loaded {
    pub(crate) engine: Arc<Engine>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) digest: String,
    pub(crate) device: DeviceName,
    /// The precision of its weights; adapters must have been trained over the same.
    pub(crate) precision: Precision,
    /// The folder of its files.
    pub(crate) folder: PathBuf,
    /// The tokens that end an answer.
    pub(crate) eos: Vec<u32>,
}

/// The device of a base and the precision of its weights there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceChoice {
    pub(crate) device: DeviceName,
    pub(crate) precision: Precision,
}

/// Loads the base; `None` if the stop comes first.
///
/// # Errors
/// A base that cannot be used, as [`togi_base::Error::of_base`]; as [`on_device`].
pub(crate) async fn load(
    name: &str,
    config: &BaseConfig,
    choice: DeviceChoice,
    cache: &Path,
    context: &Context,
) -> Result<Option<Loaded>> {
    let DeviceChoice { device, precision } = choice;
    let (stopper, readiness) = (&context.stopper, &context.readiness);
    let mut backoff = BACKOFF;
    loop {
        let fetching = CheckedBase::fetch(config, cache, device, precision);
        let Some(fetched) = stopper.run(fetching).await else {
            return Ok(None);
        };
        match fetched {
            Ok(fetched) => {
                readiness.note("base", None);
                return start(name, fetched, choice).await.map(Some);
            }
            Err(error) if error.retryable() => {
                tracing::warn!(
                    base = name,
                    error = with_cause(&error),
                    "base cannot be reached; waiting"
                );
                readiness.note("base", Some(error.to_string()));
            }
            Err(error) => return Err(error.of_base(name).into()),
        }
        if !backoff.wait(stopper).await {
            return Ok(None);
        }
    }
}

async fn start(name: &str, fetched: Fetched, choice: DeviceChoice) -> Result<Loaded> {
    let owned_name = name.to_owned();
    let DeviceChoice { device, precision } = choice;
    let Fetched {
        checked, folder, ..
    } = fetched;
    let starting =
        tokio::task::spawn_blocking(move || on_device(&owned_name, folder, checked, device));
    let loaded = starting
        .await
        .map_err(|error| Error::Broken(format!("loading the base ended: {error}")))??;
    let parameters = loaded.engine.config().parameters();
    tracing::info!(
        base = name,
        digest = loaded.digest,
        precision = precision.name(),
        %device,
        parameters,
        "base loaded"
    );
    Ok(loaded)
}

/// Puts a base onto its device.
///
/// # Errors
/// A failed precondition for a base that the device refuses; [`Error::Device`] for a device that
/// cannot be used.
pub(crate) fn on_device(
    name: &str,
    folder: PathBuf,
    checked: CheckedBase,
    device: DeviceName,
) -> Result<Loaded> {
    let (precision, eos) = (checked.base.precision(), checked.eos());
    let engine = Engine::on(Arc::new(checked.base), device.device(precision));
    let engine = engine.map_err(|error| match error {
        error @ togi_model::Error::Device { .. } => Error::Device(error),
        other => togi_base::Error::from(other).of_base(name).into(),
    })?;
    // Only now: where the files went straight to the GPU, this waits until they are hashed.
    let digest = engine.base().digest().to_owned();
    Ok(Loaded {
        engine: Arc::new(engine),
        tokenizer: Arc::new(checked.tokenizer),
        digest,
        device,
        precision,
        folder,
        eos,
    })
}
