//! The frozen base: a Hugging Face folder's weights by name, checked against its configuration, and
//! its digest.

mod bitsandbytes;
mod digest;
mod folder;
pub(crate) mod held;
mod merge;
mod quantize;
mod random;
pub(crate) mod read;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::ops::Ops;
use crate::precision::Precision;
use crate::weight::Weight;
use digest::BaseDigest;
use folder::Folder;
use held::Held;
pub use merge::write_merged;
pub use quantize::{quantized_as, write_quantized};
pub use random::{Buffers, Random};
pub use write::{write, write_random};

/// Names under which a base folder has its SentencePiece model.
const TOKENIZER_FILES: [&str; 2] = ["spiece.model", "tokenizer.model"];

/// A base: configuration and weights.
pub struct Base {
    config: Config,
    tensors: BTreeMap<String, Held>,
    tokenizer: Option<Vec<u8>>,
    digest: BaseDigest,
    precision: Precision,
}

impl Base {
    /// Loads a folder: `config.json`, weights as `model.safetensors`, as shards with
    /// `model.safetensors.index.json`, or as `pytorch_model.bin` (also sharded), and the
    /// tokenizer as `spiece.model` or `tokenizer.model` if it is there.
    ///
    /// Strict: every tensor that the configuration calls for must be there with its shape, and
    /// nothing else, but for the buffers that files of 2023 carry (`attention.bias`,
    /// `attention.masked_bias`, `rotary_emb.inv_freq`) and, where the head is tied, a copy of
    /// the embedding. The head may also be called `lm_head.weight`. fp16, bf16 and f32 are taken.
    ///
    /// # Errors
    /// A file that is missing, unreadable or broken; a tensor that is missing, unknown, twice
    /// there, of wrong shape or type, or not finite.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_as(dir, Precision::F32)
    }

    /// [`Base::load`] with the four linear weights of each layer held in a precision; all else
    /// stays in f32.
    ///
    /// Takes as well a folder that bitsandbytes has quantized so, or [`write_quantized`]: its bytes
    /// are held as they are.
    ///
    /// # Errors
    /// As [`Base::load`]; [`Error::Precision`] if this build cannot hold a base so, or the folder
    /// is quantized otherwise.
    pub fn load_as(dir: &Path, precision: Precision) -> Result<Self> {
        let mut base = Self::open(dir, precision)?;
        let tensors = std::mem::take(&mut base.tensors).into_iter();
        base.tensors = tensors
            .map(|(name, held)| Ok((name, held.here()?)))
            .collect::<Result<_>>()?;
        base.digest.value();
        Ok(base)
    }

    /// [`Base::load_as`] without reading values, but for those of quantized folders and of
    /// `pytorch_model.bin`: each tensor stays in its mapped file, which must not change, until
    /// somebody needs it. A card's engine then brings it from there straight into its form; for
    /// all others [`Base::weight`] does, once.
    ///
    /// # Errors
    /// As [`Base::load_as`], but for values: whoever needs one that is not finite or does not fit
    /// gets that error.
    pub fn open(dir: &Path, precision: Precision) -> Result<Self> {
        let Folder {
            config,
            tensors,
            digest,
            ..
        } = Folder::open(dir, precision)?;
        let tokenizer = tokenizer_file(dir);
        let tokenizer = tokenizer.map(|path| read::file(&path)).transpose()?;
        Ok(Self {
            config,
            tensors: tensors
                .into_iter()
                .map(|(name, tensor)| (name, tensor.held))
                .collect(),
            tokenizer,
            digest,
            precision,
        })
    }

    /// A base of values at hand, without files and so without a digest: for trials and
    /// measurements.
    ///
    /// # Errors
    /// The configuration is invalid, or whatever `make` says of a name and shape.
    pub fn made(
        config: Config,
        precision: Precision,
        mut make: impl FnMut(&str, &[usize]) -> Result<Weight>,
    ) -> Result<Self> {
        config.validate()?;
        let tensors = config
            .shapes()
            .into_iter()
            .map(|(name, shape)| Ok((name.clone(), Held::Here(make(&name, &shape)?))))
            .collect::<Result<_>>()?;
        Ok(Self {
            config,
            tensors,
            tokenizer: None,
            digest: BaseDigest::none(),
            precision,
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How the linear weights are held.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The tokenizer's file, if the folder has one.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&[u8]> {
        self.tokenizer.as_deref()
    }

    /// SHA-256 (hex) of the lines `<sha-256 of the file, hex>  <file name>\n` of `config.json` and
    /// of every weight file, sorted by file name: what `sha256sum` prints. An index file is not
    /// part of it, nor is the tokenizer, which has a digest of its own. Waits for the threads
    /// that make it, of a base that was just opened.
    #[must_use]
    pub fn digest(&self) -> &str {
        self.digest.value()
    }

    /// Values in all tensors.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.config.parameters()
    }

    /// A tensor that is held in full, f32 on the CPU: for oracles and inspection.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.weight(name) {
            Ok(Weight::Full(tensor)) => Some(tensor),
            _ => None,
        }
    }

    /// A tensor in its form.
    ///
    /// # Errors
    /// [`Error::Missing`] if the base has no weight of that name. A base that was only opened also
    /// reports values that are not finite or do not fit.
    pub fn weight(&self, name: &str) -> Result<&Weight> {
        self.held(name)?.weight()
    }

    pub(crate) fn held(&self, name: &str) -> Result<&Held> {
        let held = self.tensors.get(name);
        held.ok_or_else(|| Error::Missing(name.to_owned()))
    }

    /// What the tensors take on a card whose floats have so many bytes.
    #[cfg(feature = "cuda")]
    pub(crate) fn device_bytes(&self, float_bytes: u64) -> u64 {
        let tensors = self.tensors.values();
        tensors.map(|held| held.device_bytes(float_bytes)).sum()
    }

    /// What is still in its file, in the order in which a network takes it.
    #[cfg(feature = "cuda")]
    pub(crate) fn in_files(&self) -> impl Iterator<Item = &held::InFile> {
        let names = self.config.shapes().into_iter().map(|(name, _)| name);
        names.filter_map(|name| match self.tensors.get(&name) {
            Some(Held::InFile(tensor)) => Some(tensor),
            _ => None,
        })
    }

    /// How many tensors there are.
    #[cfg(feature = "cuda")]
    pub(crate) fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// A tensor that is held in full on a device, vectors as one row.
    pub(crate) fn array<O: Ops>(&self, ops: &O, name: &str) -> Result<O::Array> {
        ops.adopt(self.held(name)?)
    }
}

/// The SentencePiece model in a base's folder, if there is one.
#[must_use]
pub fn tokenizer_file(dir: &Path) -> Option<PathBuf> {
    let mut candidates = TOKENIZER_FILES.iter().map(|name| dir.join(name));
    candidates.find(|path| path.is_file())
}
