//! A base with its tokenizer. The two belong together: ids that the tokenizer makes must have rows
//! in the network.

use std::path::{Path, PathBuf};

use togi_model::base::quantized_as;
use togi_model::{Base, Config, DeviceName, Precision};
use togi_runtime::config::BaseConfig;
use togi_runtime::store::folder;
use togi_tokens::Tokenizer;
use tokio::task::spawn_blocking;

use crate::error::{Error, Result};

/// The `eos_token_id` of a GPT-NeoX configuration that has none.
const DEFAULT_EOS: u32 = 2;

/// A base and the tokenizer that fits it.
pub struct CheckedBase {
    /// The base.
    pub base: Base,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

/// A configured base, read from its local folder.
pub struct Fetched {
    /// The base with its tokenizer.
    pub checked: CheckedBase,
    /// The precision of files that are quantized already.
    pub quantized_as: Option<Precision>,
    /// The folder of its files.
    pub folder: PathBuf,
    /// Where they are from: a URL, with the commit if it is a hub's.
    pub origin: String,
}

impl CheckedBase {
    /// Brings a configured base to a local folder and reads it for a device.
    ///
    /// # Errors
    /// [`Error::Runtime`] of [`folder::materialize`]; those of [`CheckedBase::read`].
    pub async fn fetch(
        config: &BaseConfig,
        cache: &Path,
        device: DeviceName,
        precision: Precision,
    ) -> Result<Fetched> {
        let folder::Local { folder, origin } = folder::materialize(config, cache).await?;
        let reading = spawn_blocking(move || {
            Ok(Fetched {
                checked: Self::read(&folder, device, precision)?,
                quantized_as: quantized_as(&folder)?,
                folder,
                origin,
            })
        });
        reading.await?
    }

    /// Reads a base's folder for a device. Not for async code.
    ///
    /// # Errors
    /// [`Error::Model`] if the folder is not a base that can be held in this precision; as
    /// [`CheckedBase::new`].
    pub fn read(folder: &Path, device: DeviceName, precision: Precision) -> Result<Self> {
        Self::new(device.read(folder, precision)?)
    }

    /// Checks a base that was read, with the tokenizer of its folder.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`], [`Error::Tokenizer`] or [`Error::Vocabulary`].
    pub fn new(base: Base) -> Result<Self> {
        let bytes = base.tokenizer().ok_or(Error::NoTokenizer)?;
        let tokenizer = Tokenizer::from_bytes(bytes).map_err(Error::Tokenizer)?;
        let beside: Vec<_> = base.tokenizer_settings().collect();
        let checked = tokenizer.check_beside(&beside);
        checked.map_err(Error::Tokenizer)?;
        Self::with_tokenizer(base, tokenizer)
    }

    /// Checks a base with a tokenizer from elsewhere.
    ///
    /// # Errors
    /// [`Error::Vocabulary`].
    pub fn with_tokenizer(base: Base, tokenizer: Tokenizer) -> Result<Self> {
        let (pieces, ids) = (tokenizer.vocab_size(), base.config().vocab_size);
        if pieces > ids {
            return Err(Error::Vocabulary { pieces, ids });
        }
        Ok(Self { base, tokenizer })
    }

    /// Returns the tokens that end an answer.
    #[must_use]
    pub fn eos(&self) -> Vec<u32> {
        eos(&self.tokenizer, self.base.config())
    }
}

/// Returns the tokens that end an answer: the tokenizer's and the model's. A lone 2, which is
/// transformers' default for GPT-NeoX, counts only if the tokenizer has none.
#[must_use]
pub fn eos(tokenizer: &Tokenizer, config: &Config) -> Vec<u32> {
    let mut ids: Vec<u32> = tokenizer.eos().into_iter().collect();
    if ids.is_empty() || config.eos_token_ids != [DEFAULT_EOS] {
        let others = config.eos_token_ids.iter().filter(|id| !ids.contains(id));
        ids.extend(others.copied().collect::<Vec<_>>());
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &[u8] = include_bytes!("../../../demo/base/config.json");
    const MODEL: &[u8] = include_bytes!("../../../demo/base/spiece.model");

    #[test]
    fn an_answer_ends_with_the_tokenizers_end_and_the_models() {
        let tokenizer = Tokenizer::from_bytes(MODEL).unwrap();
        let own = tokenizer.eos().unwrap();
        for (named, ends) in [
            (vec![], vec![own]),
            (vec![own], vec![own]),
            (vec![7], vec![own, 7]),
            (vec![7, own, 9], vec![own, 7, 9]),
            (vec![DEFAULT_EOS, 7], vec![own, DEFAULT_EOS, 7]),
            // No file named it.
            (vec![DEFAULT_EOS], vec![own]),
        ] {
            let mut config = Config::from_json(CONFIG).unwrap();
            config.eos_token_ids = named.clone();
            assert_eq!(eos(&tokenizer, &config), ends, "{named:?}");
        }
    }
}
