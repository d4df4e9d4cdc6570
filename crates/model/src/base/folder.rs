//! A Hugging Face folder's tensors, checked by name, shape and type; values are read later.

use std::collections::BTreeMap;
use std::path::Path;

use super::bitsandbytes::{self, Parts};
use super::digest::BaseDigest;
use super::read::{self, Entry};
use crate::config::{Config, HEAD};
use crate::error::{Error, Result};
use crate::mapped::Bytes;
use crate::names;
use crate::precision::Precision;
use crate::stored::{Stored, StoredForm};
use crate::target::{Target, weight_name};
use crate::weight::Weight;

/// A folder that has been checked.
pub(super) struct Folder {
    pub(super) config: Config,
    /// The file itself: it has more than [`Config`] keeps.
    pub(super) config_json: Vec<u8>,
    /// The settings of generation as they are.
    pub(super) generation_json: Option<Vec<u8>>,
    pub(super) tensors: BTreeMap<String, Stored>,
    pub(super) digest: BaseDigest,
}

impl Folder {
    pub(super) fn open(dir: &Path, precision: Precision) -> Result<Self> {
        let config_json = read::file(&dir.join("config.json"))?;
        let mut config = Config::from_json(&config_json)?;
        let generation = read::generation_file(dir);
        let generation_json = generation.map(|path| read::file(&path)).transpose()?;
        if let Some(bytes) = &generation_json {
            config.read_generation(bytes)?;
        }
        let quantized = bitsandbytes::precision(&config_json)?;
        check(precision, quantized)?;
        let mut loader = Loader {
            linear: linear_weights(&config, precision),
            parts: quantized.map(|_| Parts::default()),
            tensors: BTreeMap::new(),
        };
        let mut files = vec![("config.json".into(), Bytes::of(config_json.clone()))];
        for file in read::weight_files(dir)? {
            let bytes = read::weights(&dir.join(&file), &mut |name, entry| {
                loader.take(name, entry)
            })?;
            files.push((file, bytes));
        }
        let tensors = select(&config, loader.finish()?)?;
        Ok(Self {
            config,
            config_json,
            generation_json,
            tensors,
            digest: BaseDigest::begin(files)?,
        })
    }
}

/// Checks that a folder can be held in a precision, if it is `quantized` already.
fn check(precision: Precision, quantized: Option<Precision>) -> Result<()> {
    match quantized {
        Some(other) if other != precision => {
            let reason = format!("the folder is quantized as {} already", other.name());
            Err(Error::Precision {
                precision: precision.name(),
                reason,
            })
        }
        _ => Ok(()),
    }
}

/// The names of the linear weights, and the precision of each.
fn linear_weights(config: &Config, precision: Precision) -> BTreeMap<String, Precision> {
    let layers = config.num_hidden_layers;
    (0..layers)
        .flat_map(|layer| Target::ALL.map(|target| (layer, target)))
        .map(|(layer, target)| {
            (
                weight_name(layer, target),
                precision.of_layer(layer, layers),
            )
        })
        .collect()
}

struct Loader {
    linear: BTreeMap<String, Precision>,
    /// The parts of a quantized folder's linear weights.
    parts: Option<Parts>,
    tensors: BTreeMap<String, Stored>,
}

impl Loader {
    fn take(&mut self, name: String, entry: Entry<'_>) -> Result<()> {
        let name = names::of_base(&name);
        if let Some(parts) = &mut self.parts
            && bitsandbytes::owner(&name).is_some_and(|weight| self.linear.contains_key(&weight))
        {
            return parts.take(name, entry);
        }
        let precision = self.linear.get(&name).copied().unwrap_or(Precision::F32);
        let (form, float) = match entry {
            Entry::Floats(floats) => {
                let float = floats.float;
                (StoredForm::in_file(&name, floats, precision), float)
            }
            Entry::Values(tensor, float) => {
                let values = tensor.flatten_all()?.to_vec1()?;
                let weight = Weight::new(&name, values, tensor.dims(), float, precision)?;
                (StoredForm::InMemory(weight), float)
            }
            Entry::Other(view) => return Err(read::no_float(&name, &view.dtype())),
        };
        match self.tensors.insert(name.clone(), Stored { form, float }) {
            Some(_) => Err(Error::Duplicate(name)),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<BTreeMap<String, Stored>> {
        if let Some(mut parts) = self.parts {
            for (name, precision) in self.linear {
                let stored = parts.assemble(&name, precision)?;
                self.tensors.insert(name, stored);
            }
            parts.refuse_rest()?;
        }
        Ok(self.tensors)
    }
}

/// Checks that the tensors are exactly those of the configuration.
fn select(
    config: &Config,
    mut found: BTreeMap<String, Stored>,
) -> Result<BTreeMap<String, Stored>> {
    let mut tensors = BTreeMap::new();
    let shapes = config.shapes();
    if let Some((missing, _)) = shapes.iter().find(|(name, _)| !found.contains_key(name)) {
        for (name, _) in &shapes {
            found.remove(name);
        }
        return Err(Error::missing(missing.clone(), found.into_keys().collect()));
    }
    for (name, shape) in shapes {
        let Some(tensor) = found.remove(&name) else {
            return Err(Error::Missing(name));
        };
        let got = tensor.form.shape();
        if got != shape {
            return Err(Error::Shape {
                name,
                expected: shape,
                got,
            });
        }
        tensors.insert(name, tensor);
    }
    if config.tie_word_embeddings
        && let Some(copy) = found.remove(HEAD)
        && !same(&copy, &tensors["gpt_neox.embed_in.weight"])?
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

fn same(a: &Stored, b: &Stored) -> Result<bool> {
    match (&a.form, &b.form) {
        (StoredForm::InFile(a), StoredForm::InFile(b)) if a.floats.same(&b.floats) => Ok(true),
        (a, b) => read::same(&a.weight()?.dequantized()?, &b.weight()?.dequantized()?),
    }
}
