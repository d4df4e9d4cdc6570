//! Bases with random weights, for tests and measurements. They are written tensor by tensor into
//! shards as Hugging Face makes them, so that any size needs little memory.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use serde_json::json;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::random;
use crate::tensor_file::{Entry, Type, Writer};

/// The largest weight file, in bytes.
const SHARD_BYTES: usize = 5_000_000_000;

/// The constant buffers beside the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffers {
    /// None, as transformers writes today.
    None,
    /// `attention.bias`, `attention.masked_bias` and `rotary_emb.inv_freq` of each layer, as
    /// transformers wrote in 2023.
    Of2023,
}

/// A base to be written.
#[derive(Clone, Debug)]
pub struct Random {
    /// The shape.
    pub config: Config,
    /// The same seed gives the same bytes.
    pub seed: u64,
    /// The weights' type: one of the floats.
    pub kind: Type,
    /// The other tensors in the files.
    pub buffers: Buffers,
}

impl Random {
    /// Writes `config.json` and the weights, as transformers initialises them: normal with
    /// deviation 0.02, biases 0, gains 1. One file up to 5 GB, else several and their index.
    ///
    /// # Errors
    /// The configuration is invalid, or a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        self.write_in_shards(dir, SHARD_BYTES)
    }

    fn write_in_shards(&self, dir: &Path, most: usize) -> Result<()> {
        self.config.validate()?;
        let path = dir.join("config.json");
        std::fs::write(&path, self.config.to_json()).map_err(|e| Error::file(path, e))?;
        let shards = shards(self.entries(), most);
        let count = shards.len();
        let mut places = BTreeMap::new();
        let mut total = 0;
        for (number, entries) in shards.into_iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            let mut file = Writer::create(&dir.join(&name), entries.clone())?;
            for entry in entries {
                file.write(&self.bytes(&entry))?;
                total += entry.bytes();
                places.insert(entry.name, name.clone());
            }
            file.finish()?;
        }
        if count == 1 {
            return Ok(());
        }
        let index = json!({ "metadata": { "total_size": total }, "weight_map": places });
        let path = dir.join("model.safetensors.index.json");
        std::fs::write(&path, format!("{index:#}\n")).map_err(|e| Error::file(path, e))
    }

    /// The weights, then the buffers. Booleans are the narrowest type and come last.
    fn entries(&self) -> Vec<Entry> {
        let weight = |(name, shape)| Entry {
            name,
            kind: self.kind,
            shape,
        };
        let mut entries: Vec<Entry> = self.config.shapes().into_iter().map(weight).collect();
        if self.buffers == Buffers::None {
            return entries;
        }
        let (layers, longest) = (
            0..self.config.num_hidden_layers,
            self.config.max_position_embeddings,
        );
        let frequencies = vec![self.config.rotary_dim() / 2];
        for (name, kind, shape) in [
            ("rotary_emb.inv_freq", self.kind, frequencies),
            ("masked_bias", self.kind, Vec::new()),
            ("bias", Type::Bool, vec![1, 1, longest, longest]),
        ] {
            entries.extend(layers.clone().map(|layer| Entry {
                name: format!("gpt_neox.layers.{layer}.attention.{name}"),
                kind,
                shape: shape.clone(),
            }));
        }
        entries
    }

    fn bytes(&self, entry: &Entry) -> Vec<u8> {
        let count = entry.count();
        let floats = match entry.name.rsplit('.').next() {
            _ if entry.kind == Type::Bool => {
                return causal(self.config.max_position_embeddings);
            }
            Some("inv_freq") => frequencies(&self.config),
            // In 16 bits torch stores -1e9 as minus infinity.
            Some("masked_bias") => vec![-1e9],
            _ => weights(self.seed, &entry.name, count),
        };
        match entry.kind {
            Type::F16 => all_bytes(&floats, |x| half::f16::from_f32(x).to_le_bytes()),
            Type::Bf16 => all_bytes(&floats, |x| half::bf16::from_f32(x).to_le_bytes()),
            _ => all_bytes(&floats, f32::to_le_bytes),
        }
    }
}

/// The bytes of values, computed on all cores.
fn all_bytes<const N: usize>(values: &[f32], bytes: impl Fn(f32) -> [u8; N] + Sync) -> Vec<u8> {
    let mut all = vec![0; N * values.len()];
    let places = all.as_chunks_mut::<N>().0.par_iter_mut();
    let pairs = places.zip(values).with_min_len(1 << 12);
    pairs.for_each(|(place, &value)| *place = bytes(value));
    all
}

/// Fills files in the order of the tensors. A tensor above the limit has its own file.
fn shards(entries: Vec<Entry>, most: usize) -> Vec<Vec<Entry>> {
    let mut shards: Vec<Vec<Entry>> = Vec::new();
    let mut filled = 0;
    for entry in entries {
        filled += entry.bytes();
        match shards.last_mut() {
            Some(shard) if filled <= most => shard.push(entry),
            _ => {
                filled = entry.bytes();
                shards.push(vec![entry]);
            }
        }
    }
    shards
}

/// A weight's values by its name.
pub(super) fn weights(seed: u64, name: &str, count: usize) -> Vec<f32> {
    if name.ends_with(".bias") {
        return vec![0.0; count];
    }
    if name.contains("norm.") {
        return vec![1.0; count];
    }
    let key = random::derive_name(seed, name);
    let values = (0..count as u64).into_par_iter();
    values.map(|index| 0.02 * normal(key, index)).collect()
}

/// The `index`-th standard normal number of a key's stream (Box and Muller).
fn normal(key: u64, index: u64) -> f32 {
    let (a, b) = (
        random::unit(key, 2 * index),
        random::unit(key, 2 * index + 1),
    );
    ((-2.0 * (1.0 - a).ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()) as f32
}

/// The causal mask: a position sees those up to itself.
fn causal(longest: usize) -> Vec<u8> {
    let rows = 0..longest;
    rows.flat_map(|row| (0..longest).map(move |column| u8::from(column <= row)))
        .collect()
}

fn frequencies(config: &Config) -> Vec<f32> {
    let rotated = config.rotary_dim();
    (0..rotated / 2)
        .map(|pair| {
            let power = (2 * pair) as f64 / rotated as f64;
            (1.0 / config.rotary_emb_base.powf(power)) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Base, base};

    fn random(kind: Type, buffers: Buffers) -> Random {
        let config = br#"{"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 8, "rotary_pct": 1.0}"#;
        Random {
            config: Config::from_json(config).unwrap(),
            seed: 3,
            kind,
            buffers,
        }
    }

    fn written(random: &Random, most: usize) -> (tempfile::TempDir, Base) {
        let dir = tempfile::tempdir().unwrap();
        random.write_in_shards(dir.path(), most).unwrap();
        let base = Base::load(dir.path()).unwrap();
        (dir, base)
    }

    fn embedding(base: &Base) -> Vec<f32> {
        let tensor = base.tensor("gpt_neox.embed_in.weight").unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn one_file_is_what_a_random_base_has_always_been() {
        let random = random(Type::F32, Buffers::None);
        let (dir, base) = written(&random, SHARD_BYTES);
        let other = tempfile::tempdir().unwrap();
        base::write_random(other.path(), &random.config, random.seed).unwrap();
        let other = Base::load(other.path()).unwrap();
        assert_eq!(embedding(&base), embedding(&other));
        assert!(!dir.path().join("model.safetensors.index.json").exists());
    }

    #[test]
    fn shards_keep_the_limit_and_every_tensor() {
        let random = random(Type::F16, Buffers::Of2023);
        let (dir, cut) = written(&random, 4000);
        let (_whole, whole) = written(&random, SHARD_BYTES);
        assert_eq!(embedding(&cut), embedding(&whole));
        let files: Vec<Vec<u8>> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
            .map(|path| std::fs::read(path).unwrap())
            .collect();
        assert!(files.len() > 3, "{}", files.len());
        for file in files {
            let header = u64::from_le_bytes(*file.first_chunk().unwrap());
            let values = file.len() as u64 - 8 - header;
            assert!(0 < values && values <= 4000, "{values}");
        }
    }

    #[test]
    fn buffers_of_2023_are_what_torch_made() {
        let random = random(Type::F16, Buffers::Of2023);
        let (dir, _base) = written(&random, SHARD_BYTES);
        let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let bias = file.tensor("gpt_neox.layers.1.attention.bias").unwrap();
        assert_eq!(bias.shape(), [1, 1, 8, 8]);
        assert_eq!(bias.data()[8..16], [1, 1, 0, 0, 0, 0, 0, 0]);
        let masked = file.tensor("gpt_neox.layers.0.attention.masked_bias");
        let masked = half::f16::from_le_bytes(masked.unwrap().data().try_into().unwrap());
        assert_eq!(masked, half::f16::NEG_INFINITY);
    }
}
