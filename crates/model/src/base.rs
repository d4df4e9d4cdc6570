//! The frozen base: a Hugging Face folder's weights by name, checked against its configuration, and its digest.

mod merge;
mod random;
pub(crate) mod read;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use crate::canonical;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::ops::Ops;
use crate::precision::Precision;
pub use merge::write_merged;
pub use random::{Buffers, Random};
pub use write::{write, write_random};

/// Names under which a base folder has its SentencePiece model.
const TOKENIZER_FILES: [&str; 2] = ["spiece.model", "tokenizer.model"];

/// The head's name in a checkpoint.
const HEAD: &str = "embed_out.weight";
/// The head's name in the memory of newer transformers, and so in files that were written past its own saving.
const HEAD_IN_MEMORY: &str = "lm_head.weight";

/// A base: configuration and weights in f32.
pub struct Base {
    config: Config,
    tensors: BTreeMap<String, Tensor>,
    tokenizer: Option<Vec<u8>>,
    digest: String,
    precision: Precision,
}

impl Base {
    /// Loads a folder: `config.json`, weights as `model.safetensors`, as shards with `model.safetensors.index.json`, or as
    /// `pytorch_model.bin` (also sharded), and the tokenizer as `spiece.model` or `tokenizer.model` if it is there.
    ///
    /// Strict: every tensor that the configuration calls for must be there with its shape, and nothing else, but for the
    /// buffers that files of 2023 carry (`attention.bias`, `attention.masked_bias`, `rotary_emb.inv_freq`) and, where the
    /// head is tied, a copy of the embedding. The head may also be called `lm_head.weight`. fp16, bf16 and f32 are taken.
    ///
    /// # Errors
    /// A file that is missing, unreadable or broken; a tensor that is missing, unknown, twice there, of wrong shape or
    /// type, or not finite.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_as(dir, Precision::F32)
    }

    /// [`Base::load`] in a precision.
    ///
    /// # Errors
    /// As [`Base::load`]; [`Error::Precision`] if this build cannot hold a base so.
    pub fn load_as(dir: &Path, precision: Precision) -> Result<Self> {
        if precision != Precision::F32 {
            return Err(Error::Precision {
                precision,
                reason: "is not built yet".into(),
            });
        }
        let config_bytes = read::file(&dir.join("config.json"))?;
        let config = Config::from_json(&config_bytes)?;
        let files = read::weight_files(dir)?;
        let mut digests = vec![(
            "config.json".to_owned(),
            canonical::sha256_hex(&config_bytes),
        )];
        let mut found = BTreeMap::new();
        for file in &files {
            let (digest, tensors) = read::weights(&dir.join(file))?;
            digests.push((file.clone(), digest));
            for (name, tensor) in tensors {
                let name = if name == HEAD_IN_MEMORY {
                    HEAD.to_owned()
                } else {
                    name
                };
                if found.insert(name.clone(), tensor).is_some() {
                    return Err(Error::Duplicate(name));
                }
            }
        }
        let tensors = select(&config, found)?;
        let tokenizer = tokenizer_file(dir)
            .map(|path| read::file(&path))
            .transpose()?;
        Ok(Self {
            config,
            tensors,
            tokenizer,
            digest: digest(digests),
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

    /// SHA-256 (hex) of the lines `<sha-256 of the file, hex>  <file name>\n` of `config.json` and of every weight file,
    /// sorted by file name: what `sha256sum` prints. An index file is not part of it, nor is the tokenizer, which has a
    /// digest of its own.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Values in all tensors.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.config.parameters()
    }

    /// A weight, f32 on the CPU: for oracles and inspection.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// A weight on a device, vectors as one row.
    pub(crate) fn on_device<O: Ops>(&self, ops: &O, name: &str) -> Result<O::Array> {
        let tensor = self
            .tensor(name)
            .ok_or_else(|| Error::Missing(name.to_owned()))?;
        ops.adopt(tensor)
    }
}

/// The SentencePiece model in a base's folder, if there is one.
#[must_use]
pub fn tokenizer_file(dir: &Path) -> Option<PathBuf> {
    let mut candidates = TOKENIZER_FILES.iter().map(|name| dir.join(name));
    candidates.find(|path| path.is_file())
}

/// The names and shapes of the base's tensors.
pub(crate) fn shapes(config: &Config) -> Vec<(String, Vec<usize>)> {
    let (vocab, hidden, inner) = (
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
    );
    let mut shapes = vec![("gpt_neox.embed_in.weight".to_owned(), vec![vocab, hidden])];
    for layer in 0..config.num_hidden_layers {
        let mut pair = |name: &str, weight: Vec<usize>, has_bias: bool| {
            if has_bias {
                shapes.push((
                    format!("gpt_neox.layers.{layer}.{name}.bias"),
                    vec![weight[0]],
                ));
            }
            shapes.push((format!("gpt_neox.layers.{layer}.{name}.weight"), weight));
        };
        pair("input_layernorm", vec![hidden], true);
        pair("post_attention_layernorm", vec![hidden], true);
        pair(
            "attention.query_key_value",
            vec![3 * hidden, hidden],
            config.attention_bias,
        );
        pair(
            "attention.dense",
            vec![hidden, hidden],
            config.attention_bias,
        );
        pair("mlp.dense_h_to_4h", vec![inner, hidden], true);
        pair("mlp.dense_4h_to_h", vec![hidden, inner], true);
    }
    shapes.push(("gpt_neox.final_layer_norm.bias".to_owned(), vec![hidden]));
    shapes.push(("gpt_neox.final_layer_norm.weight".to_owned(), vec![hidden]));
    if !config.tie_word_embeddings {
        shapes.push((HEAD.to_owned(), vec![vocab, hidden]));
    }
    shapes
}

/// Whether the name is one of the constant buffers that checkpoints of 2023 carry.
fn is_old_buffer(name: &str) -> bool {
    name.starts_with("gpt_neox.layers.")
        && [
            ".attention.bias",
            ".attention.masked_bias",
            ".attention.rotary_emb.inv_freq",
        ]
        .iter()
        .any(|suffix| name.ends_with(suffix))
}

/// Exactly the tensors that the configuration calls for.
fn select(
    config: &Config,
    mut found: BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, shape) in shapes(config) {
        let tensor = found
            .remove(&name)
            .ok_or_else(|| Error::Missing(name.clone()))?;
        if tensor.dims() != shape {
            return Err(Error::Shape {
                name,
                expected: shape,
                got: tensor.dims().to_vec(),
            });
        }
        tensors.insert(name, tensor);
    }
    if config.tie_word_embeddings
        && let Some(copy) = found.remove(HEAD)
        && !read::same(&copy, &tensors["gpt_neox.embed_in.weight"])?
    {
        return Err(Error::Config(
            "tie_word_embeddings is set, but embed_out.weight is not embed_in's".into(),
        ));
    }
    if found.is_empty() {
        Ok(tensors)
    } else {
        Err(Error::Unexpected(found.into_keys().collect()))
    }
}

fn digest(mut files: Vec<(String, String)>) -> String {
    files.sort();
    let lines: String = files
        .iter()
        .map(|(name, sha256)| format!("{sha256}  {name}\n"))
        .collect();
    canonical::sha256_hex(lines.as_bytes())
}
