//! `adapter_config.json`, read strictly: what is understood, what changes nothing, and what is refused by name.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::CONFIG_FILE;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lora::{Shape, Target};

/// Keys that say something about the adapter's making or the library, and nothing about its numbers.
const INFORMATION: [&str; 11] = [
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

/// Keys that are read here.
const UNDERSTOOD: [&str; 11] = [
    "alpha_pattern",
    "bias",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// An adapter's settings.
pub(super) struct Settings {
    pub(super) rank: usize,
    pub(super) alpha: f64,
    pub(super) dropout: f64,
    pub(super) targets: Vec<Target>,
    rank_pattern: BTreeMap<String, f64>,
    alpha_pattern: BTreeMap<String, f64>,
    rank_stabilised: bool,
    layers: Option<Vec<u64>>,
}

/// The module's name as PEFT's patterns see it.
pub(super) fn module_name(layer: usize, target: Target) -> String {
    format!("gpt_neox.layers.{layer}.{}", target.path())
}

fn refuse<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::format(CONFIG_FILE, reason))
}

impl Settings {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(bytes).map_err(|source| Error::Json {
            what: CONFIG_FILE.into(),
            source,
        })?;
        let Value::Object(map) = value else {
            return refuse("is not an object");
        };
        refuse_other_features(&map)?;
        let Some(rank) = map
            .get("r")
            .and_then(Value::as_u64)
            .and_then(|rank| usize::try_from(rank).ok())
        else {
            return refuse("r is not a count");
        };
        let Some(alpha) = map.get("lora_alpha").and_then(Value::as_f64) else {
            return refuse("lora_alpha is not a number");
        };
        let layers = match map.get("layers_to_transform") {
            None | Some(Value::Null) => None,
            Some(Value::Number(number)) if number.is_u64() => {
                number.as_u64().map(|layer| vec![layer])
            }
            Some(Value::Array(list)) if list.iter().all(Value::is_u64) => {
                Some(list.iter().filter_map(Value::as_u64).collect())
            }
            Some(other) => {
                return refuse(format!("layers_to_transform {other} is no list of layers"));
            }
        };
        Ok(Self {
            rank,
            alpha,
            dropout: map
                .get("lora_dropout")
                .and_then(Value::as_f64)
                .unwrap_or(0.0),
            targets: targets(map.get("target_modules"))?,
            rank_pattern: pattern(&map, "rank_pattern")?,
            alpha_pattern: pattern(&map, "alpha_pattern")?,
            rank_stabilised: map
                .get("use_rslora")
                .and_then(Value::as_bool)
                .unwrap_or(false),
            layers,
        })
    }

    /// A module's rank, its alpha in the plain form, and its scale.
    pub(super) fn module(
        &self,
        layer: usize,
        target: Target,
        config: &Config,
    ) -> Result<(usize, f64, f64)> {
        let name = module_name(layer, target);
        let rank = match lookup(&self.rank_pattern, "rank_pattern", &name)? {
            None => self.rank,
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            Some(rank) if rank.fract() == 0.0 && rank >= 1.0 => rank as usize,
            Some(rank) => return refuse(format!("rank_pattern gives {name} the rank {rank}")),
        };
        if rank == 0 || rank > config.hidden_size {
            return refuse(format!(
                "rank {rank} of {name} is not from 1 to the hidden size {}",
                config.hidden_size
            ));
        }
        let alpha = lookup(&self.alpha_pattern, "alpha_pattern", &name)?.unwrap_or(self.alpha);
        if !alpha.is_finite() || alpha <= 0.0 {
            return refuse(format!("alpha {alpha} of {name} is not a positive number"));
        }
        let alpha = self.plain_alpha(alpha, rank);
        Ok((rank, alpha, alpha / rank as f64))
    }

    /// The alpha whose plain scale alpha / r is the scale that is meant: rank-stabilised ones are alpha / √r.
    pub(super) fn plain_alpha(&self, alpha: f64, rank: usize) -> f64 {
        if self.rank_stabilised {
            alpha * (rank as f64).sqrt()
        } else {
            alpha
        }
    }

    /// Every module that the settings name has tensors, and none that they do not.
    pub(super) fn check_covered(&self, shapes: &[Shape], config: &Config) -> Result<()> {
        let layers: Vec<usize> = match &self.layers {
            None => (0..config.num_hidden_layers).collect(),
            Some(list) => list
                .iter()
                .filter_map(|&layer| usize::try_from(layer).ok())
                .collect(),
        };
        for &layer in &layers {
            for &target in &self.targets {
                if !shapes
                    .iter()
                    .any(|shape| (shape.layer, shape.target) == (layer, target))
                {
                    return Err(Error::Missing(crate::lora::name(layer, target, 'A')));
                }
            }
        }
        let stray = shapes
            .iter()
            .find(|shape| !layers.contains(&shape.layer) || !self.targets.contains(&shape.target));
        match stray {
            None => Ok(()),
            Some(shape) => {
                let name = module_name(shape.layer, shape.target);
                refuse(format!(
                    "target_modules and layers_to_transform do not name {name}, which has tensors"
                ))
            }
        }
    }
}

/// Refuses whatever is set and would change the numbers. Features that are null, false or empty are off.
fn refuse_other_features(map: &Map<String, Value>) -> Result<()> {
    let text = |key: &str| map.get(key).and_then(Value::as_str);
    if text("peft_type") != Some("LORA") {
        return refuse("peft_type is not LORA");
    }
    if map.get("task_type").is_some_and(|value| !value.is_null())
        && text("task_type") != Some("CAUSAL_LM")
    {
        return refuse("task_type is not CAUSAL_LM");
    }
    if map.contains_key("bias") && text("bias") != Some("none") {
        return refuse("bias other than none is not supported");
    }
    for (key, value) in map {
        if UNDERSTOOD.contains(&key.as_str()) || INFORMATION.contains(&key.as_str()) {
            continue;
        }
        let off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !off {
            return refuse(format!("{key} is set, which is not supported"));
        }
    }
    Ok(())
}

fn targets(value: Option<&Value>) -> Result<Vec<Target>> {
    let Some(Value::Array(list)) = value else {
        return refuse("target_modules is no list of modules");
    };
    let mut targets = Vec::new();
    for name in list {
        let Some(name) = name.as_str() else {
            return refuse(format!("target_modules names {name}"));
        };
        // A path's end, such as `attention.dense`, means the same module.
        match Target::ALL
            .into_iter()
            .find(|target| target.name() == name || target.path() == name)
        {
            Some(target) => targets.push(target),
            None => {
                return refuse(format!(
                    "target_modules names {name:?}, which is no linear layer of gpt-neox"
                ));
            }
        }
    }
    targets.sort_unstable();
    targets.dedup();
    Ok(targets)
}

fn pattern(map: &Map<String, Value>, key: &str) -> Result<BTreeMap<String, f64>> {
    let entries = match map.get(key) {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(entries)) => entries,
        Some(_) => return refuse(format!("{key} is not an object")),
    };
    let mut pattern = BTreeMap::new();
    for (name, value) in entries {
        // PEFT takes regular expressions; only plain names are understood here, and guessing would be worse.
        if !name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
        {
            return refuse(format!("{key} has {name:?}, which is not a plain name"));
        }
        let Some(value) = value.as_f64() else {
            return refuse(format!("{key} gives {name} no number"));
        };
        pattern.insert(name.clone(), value);
    }
    Ok(pattern)
}

/// The value of the entries that are the name or a path's end of it.
fn lookup(pattern: &BTreeMap<String, f64>, key: &str, name: &str) -> Result<Option<f64>> {
    let mut found = None;
    for (end, &value) in pattern {
        let fits = name
            .strip_suffix(end.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if !fits {
            continue;
        }
        if found.is_some_and(|other: f64| other.to_bits() != value.to_bits()) {
            return refuse(format!("{key} has two values for {name}"));
        }
        found = Some(value);
    }
    Ok(found)
}
