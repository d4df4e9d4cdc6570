//! The tokenizer of a base's folder as transformers loads it, for folders that are written.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use togi_base::checked;
use togi_model::merge::Special;
use togi_model::{Config, base};
use togi_tokens::Tokenizer;
use togi_tokens::tokenizer::{BESIDE, transformers};

use crate::error::{Error, Result};

/// The files by their names, and the tokenizer that they are made of.
pub struct TokenizerFiles {
    files: Vec<(&'static str, Vec<u8>)>,
    tokenizer: Option<Tokenizer>,
}

impl TokenizerFiles {
    /// Makes the files of a folder's SentencePiece model. Of a folder without one they are its own
    /// files.
    ///
    /// # Errors
    /// A file cannot be read, or the model cannot be expressed as transformers loads it.
    pub fn of(folder: &Path) -> Result<Self> {
        let mut beside = Vec::new();
        for name in BESIDE {
            let path = folder.join(name);
            match fs::read(&path) {
                Ok(bytes) => beside.push((name, bytes)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Error::file(&path, error)),
            }
        }
        let Some(model) = base::tokenizer_file(folder) else {
            return Ok(Self {
                files: beside,
                tokenizer: None,
            });
        };
        let bytes = fs::read(&model).map_err(|error| Error::file(&model, error))?;
        let beside: Vec<_> = beside
            .iter()
            .map(|(name, bytes)| (*name, &bytes[..]))
            .collect();
        let unfit = |error| Error::unfit("base", folder, error);
        Ok(Self {
            files: transformers::files(&bytes, &beside).map_err(unfit)?,
            tokenizer: Some(Tokenizer::from_bytes(&bytes).map_err(unfit)?),
        })
    }

    /// The special tokens of answers over a base of this configuration.
    pub fn special(&self, config: &Config) -> Special {
        let Some(tokenizer) = &self.tokenizer else {
            return Special::of(config);
        };
        Special {
            eos: checked::eos(tokenizer, config),
            pad: config.pad_token_id.or(tokenizer.pad()),
        }
    }

    /// Writes the files into a folder, over those of the same names.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        for (name, bytes) in &self.files {
            let path = folder.join(name);
            fs::write(&path, bytes).map_err(|error| Error::file(&path, error))?;
        }
        Ok(())
    }
}
