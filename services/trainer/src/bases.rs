//! The configured bases: brought to this machine once, checked whole, and shared by all that need them.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use togi_model::{Base, Config};
use togi_runtime::{
    config::{BaseConfig, BasesConfig},
    folder, layout,
};
use tokio::sync::{Mutex, OnceCell};
use tracing::info;

use crate::error::{Error, Result};

/// What is known of a base.
pub struct Facts {
    /// Its configuration.
    pub config: Config,
    /// Its digest.
    pub digest: String,
    /// Digest of its tokenizer's file.
    pub tokenizer_digest: String,
    /// Where PEFT finds it: its name on the hub, or else its name here.
    pub public_name: String,
    /// The weights, where this process keeps them.
    weights: Option<Arc<Base>>,
}

impl Facts {
    /// Whether this process holds the weights already.
    #[must_use]
    pub fn resident(&self) -> bool {
        self.weights.is_some()
    }
}

/// The configured bases. Clones share what is loaded.
#[derive(Clone)]
pub struct Bases(Arc<Inner>);

struct Inner {
    configured: BasesConfig,
    keep_weights: bool,
    cache: PathBuf,
    loaded: Mutex<BTreeMap<String, Arc<OnceCell<Arc<Facts>>>>>,
}

impl Bases {
    /// Returns the bases of the configuration. `keep_weights`: a worker trains over them; who only answers requests lets them go
    /// after the check.
    #[must_use]
    pub fn new(configured: BasesConfig, cache: PathBuf, keep_weights: bool) -> Bases {
        Bases(Arc::new(Inner {
            configured,
            keep_weights,
            cache,
            loaded: Mutex::default(),
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

    /// Returns what is known of a base, after its files were read and checked: the first time takes as long as that.
    ///
    /// # Errors
    /// `NotFound` with field `base`; `FailedPrecondition` with field `base` if its files are no base.
    pub async fn facts(&self, name: &str) -> Result<Arc<Facts>> {
        let configured = self.configured(name)?;
        let cell = Arc::clone(
            self.0
                .loaded
                .lock()
                .await
                .entry(name.to_owned())
                .or_default(),
        );
        // An error is not kept: the next request tries again.
        let facts = cell.get_or_try_init(|| self.load(name, configured)).await?;
        Ok(Arc::clone(facts))
    }

    /// Returns a base's weights.
    ///
    /// # Errors
    /// As [`Bases::facts`].
    pub async fn weights(&self, name: &str) -> Result<Arc<Base>> {
        match &self.facts(name).await?.weights {
            Some(base) => Ok(Arc::clone(base)),
            None => Err(togi_runtime::Error::internal("this process keeps no weights").into()),
        }
    }

    async fn load(&self, name: &str, configured: &BaseConfig) -> Result<Arc<Facts>> {
        let local = folder::materialize(configured, &self.0.cache).await;
        let local = local.map_err(|error| error.with_field("base"))?;
        info!(base = name, "reading the base");
        let loading = tokio::task::spawn_blocking(move || Base::load(&local));
        let base = loading
            .await
            .map_err(|_| Error::unfit("base", "could not be read"))?;
        let base =
            base.map_err(|error| Error::unfit("base", format!("{name:?} is not usable: {error}")))?;
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
                format!(
                    "{name:?} has {pieces} pieces in its tokenizer and {ids} ids in its network"
                ),
            ));
        }
        Ok(Arc::new(Facts {
            config: base.config().clone(),
            digest: base.digest().to_owned(),
            tokenizer_digest: tokenizer.digest().to_owned(),
            public_name: public_name(name, &configured.url),
            weights: self.0.keep_weights.then(|| Arc::new(base)),
        }))
    }
}

fn public_name(name: &str, url: &str) -> String {
    match url.strip_prefix("hf://") {
        Some(path) => path.split('@').next().unwrap_or(path).to_owned(),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_of_the_hub_keeps_its_name_there() {
        assert_eq!(
            public_name("rinna", "hf://rinna/japanese-gpt-neox-3.6b@main"),
            "rinna/japanese-gpt-neox-3.6b"
        );
        assert_eq!(public_name("demo", "file:///bases/demo"), "demo");
    }
}
