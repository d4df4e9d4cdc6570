//! The frozen base: a Hugging Face folder's weights by name, checked against its configuration, and
//! its digest.

mod bitsandbytes;
mod digest;
mod folder;
mod quantize;
mod random;
pub(crate) mod read;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::ops::Ops;
use crate::precision::Precision;
use crate::stored::StoredForm;
use crate::weight::Weight;
use digest::BaseDigest;
use folder::Folder;
pub use quantize::{quantized_as, write_quantized};
pub use random::{Buffers, Random};
pub use read::tokenizer_file;
pub(crate) use write::save;
pub use write::{write, write_random};

/// A base: configuration and weights.
pub struct Base {
    config: Config,
    tensors: BTreeMap<String, StoredForm>,
    config_json: Option<Vec<u8>>,
    generation_json: Option<Vec<u8>>,
    tokenizer: Option<Vec<u8>>,
    tokenizer_settings: Vec<(String, Vec<u8>)>,
    digest: BaseDigest,
    precision: Precision,
}

impl Base {
    /// Loads a folder: `config.json`, weights as `model.safetensors`, as shards with
    /// `model.safetensors.index.json`, or as `pytorch_model.bin` (also sharded), and if they are
    /// there the tokenizer as `spiece.model` or `tokenizer.model`, and the tokens that end a
    /// sequence from `generation_config.json`.
    ///
    /// Every tensor of the configuration must be there with its shape, in fp16, bf16, f32 or f64,
    /// which becomes the nearest f32, and no other tensor. Exceptions are the buffers in files of
    /// 2023 (`attention.bias`, `attention.masked_bias`, `rotary_emb.inv_freq`), and a copy of the
    /// embedding where the head is tied. Names may be those of a wrapped model (`_orig_mod.`,
    /// `module.`, `model.`), of the body without `gpt_neox.`, and `lm_head.weight` for the head.
    ///
    /// # Errors
    /// A file is missing, unreadable or broken. A tensor is missing, unknown, duplicate, not
    /// finite, or of a wrong shape or type.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_as(dir, Precision::F32)
    }

    /// [`Base::load`] with the four linear weights of each layer in a precision; all other tensors
    /// stay in f32.
    ///
    /// The folder may be quantized to this precision already, by bitsandbytes or
    /// [`write_quantized`]. Its bytes are then used as they are.
    ///
    /// # Errors
    /// As [`Base::load`]; [`Error::Precision`] if the folder is quantized to another precision.
    pub fn load_as(dir: &Path, precision: Precision) -> Result<Self> {
        let mut base = Self::open(dir, precision)?;
        let tensors = std::mem::take(&mut base.tensors).into_iter();
        base.tensors = tensors
            .map(|(name, form)| Ok((name, form.in_memory()?)))
            .collect::<Result<_>>()?;
        base.digest.value();
        Ok(base)
    }

    /// Like [`Base::load_as`], but leaves tensors in their mapped files, which must not change,
    /// until they are used: a GPU's engine converts them on the GPU, [`Base::weight`] on the CPU.
    /// Quantized folders and `pytorch_model.bin` are read at once.
    ///
    /// # Errors
    /// As [`Base::load_as`]. Values that are not finite or out of range are errors of their first
    /// use.
    pub fn open(dir: &Path, precision: Precision) -> Result<Self> {
        let Folder {
            config,
            config_json,
            generation_json,
            tensors,
            digest,
        } = Folder::open(dir, precision)?;
        let tokenizer = tokenizer_file(dir);
        let tokenizer = tokenizer.map(|path| read::file(&path)).transpose()?;
        let settings = read::tokenizer_settings(dir).map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Ok((name.into_owned(), read::file(&path)?))
        });
        let tokenizer_settings = settings.collect::<Result<_>>()?;
        Ok(Self {
            config,
            tensors: tensors
                .into_iter()
                .map(|(name, tensor)| (name, tensor.form))
                .collect(),
            config_json: Some(config_json),
            generation_json,
            tokenizer,
            tokenizer_settings,
            digest,
            precision,
        })
    }

    /// A base without files, and therefore without a digest: for tests and measurements.
    ///
    /// # Errors
    /// The configuration is invalid, or the error of `make` for a name and shape.
    pub fn made(
        config: Config,
        precision: Precision,
        mut make: impl FnMut(&str, &[usize]) -> Result<Weight>,
    ) -> Result<Self> {
        config.validate()?;
        let tensors = config
            .shapes()
            .into_iter()
            .map(|(name, shape)| Ok((name.clone(), StoredForm::InMemory(make(&name, &shape)?))))
            .collect::<Result<_>>()?;
        Ok(Self {
            config,
            tensors,
            config_json: None,
            generation_json: None,
            tokenizer: None,
            tokenizer_settings: Vec::new(),
            digest: BaseDigest::none(),
            precision,
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The precision of the linear weights.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The folder's `config.json`.
    pub(crate) fn config_json(&self) -> Option<&[u8]> {
        self.config_json.as_deref()
    }

    /// The folder's `generation_config.json`.
    pub(crate) fn generation_json(&self) -> Option<&[u8]> {
        self.generation_json.as_deref()
    }

    /// The tokenizer's file, if the folder has one.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&[u8]> {
        self.tokenizer.as_deref()
    }

    /// The files that transformers keeps beside the tokenizer, with their names, which are not
    /// interpreted here.
    pub fn tokenizer_settings(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let files = self.tokenizer_settings.iter();
        files.map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }

    /// SHA-256 (hex) of the lines `<sha-256 of the file, hex>  <file name>\n` of `config.json` and
    /// of every weight file, sorted by file name, as `sha256sum` prints them. Index files,
    /// `generation_config.json` and the tokenizer, which has its own digest, are not part of it.
    /// Waits for the threads that hash a base that was just opened.
    #[must_use]
    pub fn digest(&self) -> &str {
        self.digest.value()
    }

    /// Values in all tensors.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.config.parameters()
    }

    /// A tensor that is held in f32 on the CPU: for oracles and inspection.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.weight(name) {
            Ok(Weight::Full(tensor)) => Some(tensor),
            _ => None,
        }
    }

    /// A tensor in its precision.
    ///
    /// # Errors
    /// [`Error::Missing`] if the base has no tensor of that name. For a base that was only opened:
    /// values are not finite, or out of range.
    pub fn weight(&self, name: &str) -> Result<&Weight> {
        self.stored(name)?.weight()
    }

    pub(crate) fn stored(&self, name: &str) -> Result<&StoredForm> {
        let form = self.tensors.get(name);
        form.ok_or_else(|| Error::Missing(name.to_owned()))
    }

    /// The bytes of all tensors on a GPU whose activations have `float_bytes` bytes each.
    #[cfg(feature = "cuda")]
    pub(crate) fn device_bytes(&self, float_bytes: u64) -> u64 {
        let tensors = self.tensors.values();
        tensors.map(|form| form.device_bytes(float_bytes)).sum()
    }

    /// The tensors that are still in their files, in the order in which a network takes them.
    #[cfg(feature = "cuda")]
    pub(crate) fn in_files(&self) -> impl Iterator<Item = &crate::stored::InFile> {
        let names = self.config.shapes().into_iter().map(|(name, _)| name);
        names.filter_map(|name| match self.tensors.get(&name) {
            Some(StoredForm::InFile(tensor)) => Some(tensor),
            _ => None,
        })
    }

    /// The count of tensors.
    #[cfg(feature = "cuda")]
    pub(crate) fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// A tensor in the floats of a device; a vector is one row.
    pub(crate) fn array<O: Ops>(&self, ops: &O, name: &str) -> Result<O::Array> {
        ops.adopt(self.stored(name)?)
    }
}
