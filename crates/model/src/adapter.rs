//! An adapter in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, written
//! canonically, read strictly.

mod entries;
mod files;
mod matching;
mod settings;
mod tensors;

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use togi_common::{Generation, Hasher, canonical};

use crate::base::read;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lora::{Lora, LoraConfig, Module, Shape};
use crate::names;
use crate::target::{Target, factor_name, module_name};
pub use files::{CONFIG_FILE, TENSORS_FILE};
use settings::Settings;
use tensors::Found;

/// The file name of tensors in torch's format, which PEFT wrote until 2023.
const PICKLED_FILE: &str = "adapter_model.bin";

/// An adapter folder's two files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `adapter_config.json`: the keys that every PEFT since 2023 reads, sorted, and a final
    /// newline.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`: f32, metadata `{"format": "pt"}`.
    pub tensors: Vec<u8>,
}

/// The inputs of an adapter's training, which are part of its generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// [`crate::Base::digest`].
    pub base: String,
    /// The tokenizer file's digest.
    pub tokenizer: String,
    /// The prompt template's digest.
    pub template: String,
    /// The data set's digest.
    pub dataset: String,
    /// The recipe's digest.
    pub recipe: String,
    /// The base's precision, such as `f32`. Its first name is part of every digest.
    #[serde(rename = "base_representation")]
    pub base_precision: String,
}

/// Writes an adapter; equal values give equal bytes.
///
/// # Errors
/// A value is not finite.
pub fn to_files(lora: &Lora, base_name: &str) -> Result<Files> {
    Ok(Files {
        config: config_json(lora, base_name)?,
        tensors: tensors::write(lora)?,
    })
}

fn config_json(lora: &Lora, base_name: &str) -> Result<Vec<u8>> {
    let config = lora.config();
    let (targets, layers) = named(lora);
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for module in lora.modules() {
        let name = module_name(module.layer, module.target);
        if module.rank != config.rank {
            ranks.insert(name.clone(), json!(module.rank));
        }
        if module.alpha.to_bits() != config.alpha.to_bits() {
            alphas.insert(name, number(module.alpha));
        }
    }
    let value = json!({
        "alpha_pattern": alphas,
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_to_transform": layers,
        "lora_alpha": number(config.alpha),
        "lora_dropout": config.dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": config.rank,
        "rank_pattern": ranks,
        "revision": null,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    let mut text = format!(
        "{:#}",
        canonical::value(&value).map_err(of_json(CONFIG_FILE))?
    );
    text.push('\n');
    Ok(text.into_bytes())
}

/// `target_modules` and `layers_to_transform`, from the tensors that exist and not from the
/// request.
fn named(lora: &Lora) -> (Vec<String>, Option<Vec<usize>>) {
    let modules = lora.modules();
    let mut targets: Vec<_> = modules
        .iter()
        .map(|module| module.target.name().to_owned())
        .collect();
    targets.sort_unstable();
    targets.dedup();
    let mut layers: Vec<_> = modules.iter().map(|module| module.layer).collect();
    layers.dedup();
    if targets.len() * layers.len() != modules.len() {
        // The layers have different modules, so that only full names identify them.
        let full = |module: &Module| module_name(module.layer, module.target);
        return (modules.iter().map(full).collect(), None);
    }
    let is_partial = layers.len() < lora.layers();
    (targets, is_partial.then_some(layers))
}

/// A whole number without a fraction, as PEFT writes `lora_alpha`.
fn number(value: f64) -> Value {
    #[allow(clippy::cast_possible_truncation)]
    let whole = value as i64;
    if whole as f64 == value {
        json!(whole)
    } else {
        json!(value)
    }
}

/// Reads an adapter's folder: `adapter_config.json`, and the tensors from
/// `adapter_model.safetensors` or else from `adapter_model.bin`.
///
/// # Errors
/// As [`from_files`]; a file is missing or unreadable.
pub fn from_folder(dir: &Path, config: &Config) -> Result<Lora> {
    let settings = Settings::parse(&read::file(&dir.join(CONFIG_FILE))?)?;
    let pickled = dir.join(PICKLED_FILE);
    let found = if pickled.exists() && !dir.join(TENSORS_FILE).exists() {
        tensors::read_pickled(&pickled)?
    } else {
        tensors::read(&read::file(&dir.join(TENSORS_FILE))?)?
    };
    assemble(&settings, found, config)
}

/// Reads an adapter for a model.
///
/// Module names, patterns of ranks and alphas, and rank-stabilised scales have PEFT's meaning.
/// Tensors may be f64, f32, fp16 or bf16, and their names may be those of a wrapped model.
///
/// # Errors
/// A feature is not supported (DoRA, `modules_to_save`, biases, ...); a header is over 1 MiB; a
/// tensor is duplicate, unknown, missing, not finite or of a wrong shape; configuration and tensors
/// do not fit together.
pub fn from_files(config_json: &[u8], tensors: &[u8], config: &Config) -> Result<Lora> {
    assemble(
        &Settings::parse(config_json)?,
        tensors::read(tensors)?,
        config,
    )
}

fn assemble(settings: &Settings, mut found: Found, config: &Config) -> Result<Lora> {
    refuse_unknown(&found, config)?;
    let shapes = shapes(settings, &found, config)?;
    settings.check_covered(&shapes, config)?;
    let mut targets: Vec<_> = shapes.iter().map(|shape| shape.target).collect();
    targets.sort_unstable();
    targets.dedup();
    let lora_config = LoraConfig {
        rank: settings.rank,
        alpha: settings.plain_alpha(settings.alpha, settings.rank),
        dropout: settings.dropout,
        targets,
    };
    lora_config.validate(config)?;
    let mut lora = Lora::zeros(config, &lora_config, shapes.into_iter());
    let views: Vec<_> = lora.views().collect();
    for view in views {
        let (shape, values) = found
            .remove(&view.name)
            .ok_or_else(|| Error::Missing(view.name.clone()))?;
        if shape != view.shape {
            return Err(Error::Shape {
                name: view.name,
                expected: view.shape.to_vec(),
                got: shape,
            });
        }
        lora.values_mut()[view.range].copy_from_slice(&values);
    }
    Ok(lora)
}

/// Refuses tensors that are no factors of the model's linear layers.
fn refuse_unknown(found: &Found, config: &Config) -> Result<()> {
    let factors: BTreeSet<_> = (0..config.num_hidden_layers)
        .flat_map(|layer| Target::ALL.map(|target| (layer, target)))
        .flat_map(|(layer, target)| ['A', 'B'].map(|factor| factor_name(layer, target, factor)))
        .collect();
    let unknown = found.keys().filter(|name| !factors.contains(*name));
    let unknown: Vec<_> = unknown.cloned().collect();
    if let Some(name) = unknown
        .iter()
        .find(|name| names::is_head_or_embedding(name))
    {
        let reason = format!(
            "has {name}, but the head (embed_out, lm_head) and the embedding (embed_in) stay the \
             base's; train without them in target_modules and modules_to_save, and save with \
             save_embedding_layers=False"
        );
        return Err(Error::format(TENSORS_FILE, reason));
    }
    if unknown.is_empty() {
        return Ok(());
    }
    Err(Error::Unexpected(unknown))
}

/// The modules that have tensors.
fn shapes(settings: &Settings, found: &Found, config: &Config) -> Result<Vec<Shape>> {
    let mut shapes = Vec::new();
    for layer in 0..config.num_hidden_layers {
        for target in Target::ALL {
            let names = ['A', 'B'].map(|factor| factor_name(layer, target, factor));
            let present = names.each_ref().map(|name| found.contains_key(name));
            if present == [false, false] {
                continue;
            }
            if let Some(lacking) = present.iter().position(|present| !present) {
                return Err(Error::Missing(names[lacking].clone()));
            }
            let (rank, alpha, scale) = settings.module(layer, target, config)?;
            shapes.push(Shape {
                layer,
                target,
                rank,
                alpha,
                scale,
            });
        }
    }
    Ok(shapes)
}

/// The digest that names an adapter: SHA-256 (hex) over the canonical form of `adapter_config.json`
/// (compact, keys sorted), the bytes of `adapter_model.safetensors`, and the canonical form of the
/// identity, in this order. The length in bytes (u64, little-endian) precedes each.
///
/// # Errors
/// The configuration is not JSON.
pub fn generation(files: &Files, identity: &Identity) -> Result<Generation> {
    let config: Value = serde_json::from_slice(&files.config).map_err(of_json(CONFIG_FILE))?;
    let mut hasher = Hasher::new();
    for part in [
        canonical::json(&config)
            .map_err(of_json(CONFIG_FILE))?
            .as_slice(),
        files.tensors.as_slice(),
        canonical::json(identity)
            .map_err(of_json("identity"))?
            .as_slice(),
    ] {
        hasher.frame(part);
    }
    Ok(hasher.finish().into())
}

fn of_json(what: &str) -> impl FnOnce(serde_json::Error) -> Error {
    let what = what.into();
    |source| Error::Json { what, source }
}
