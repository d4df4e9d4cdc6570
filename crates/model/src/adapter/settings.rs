//! `adapter_config.json`, read strictly: each key is understood, known to change nothing, or
//! refused by name.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::entries::Entries;
use super::files::{CONFIG_FILE, refuse};
use super::matching::{Pattern, Selection};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::lora::Shape;
use crate::target::{Target, factor_name, module_name};

/// Keys that do not change the adapter's numbers. Those of the initialisations are read by PEFT
/// only where `init_lora_weights` names theirs, and that is checked.
const INFORMATION: [&str; 14] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

/// Keys that are read here.
const UNDERSTOOD: [&str; 13] = [
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "init_lora_weights",
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

/// Initialisations that do not change the base. Others (PiSSA, OLoRA, LoftQ, ...) subtract a part
/// from the base's weights before training, so that the adapter does not belong to the base that it
/// names.
const INITIALISATIONS: [&str; 3] = ["eva", "gaussian", "orthogonal"];

/// The patterns, read a second time because the order of their entries counts.
#[derive(Deserialize)]
struct Patterns {
    rank_pattern: Option<Entries<f64>>,
    alpha_pattern: Option<Entries<f64>>,
}

/// An adapter's settings.
pub(super) struct Settings {
    pub(super) rank: usize,
    pub(super) alpha: f64,
    pub(super) dropout: f64,
    targets: Selection,
    excluded: Selection,
    rank_pattern: Pattern,
    alpha_pattern: Pattern,
    rank_stabilised: bool,
    layers: Option<Vec<u64>>,
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
        let Ok(patterns) = serde_json::from_slice::<Patterns>(bytes) else {
            return refuse("rank_pattern and alpha_pattern are not objects of numbers");
        };
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
        let dropout = match map.get("lora_dropout") {
            None | Some(Value::Null) => Some(0.0),
            Some(value) => value.as_f64(),
        };
        let Some(dropout) = dropout else {
            return refuse("lora_dropout is not a number");
        };
        let rank_stabilised = match map.get("use_rslora") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(set)) => *set,
            Some(other) => return refuse(format!("use_rslora {other} is not true or false")),
        };
        let layers = match map.get("layers_to_transform") {
            None | Some(Value::Null) => None,
            Some(Value::Array(list)) if list.is_empty() => None,
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
            dropout,
            targets: Selection::parse("target_modules", map.get("target_modules"))?,
            excluded: Selection::parse("exclude_modules", map.get("exclude_modules"))?,
            rank_pattern: Pattern::parse("rank_pattern", patterns.rank_pattern)?,
            alpha_pattern: Pattern::parse("alpha_pattern", patterns.alpha_pattern)?,
            rank_stabilised,
            layers,
        })
    }

    /// A module's rank, plain alpha, and scale.
    pub(super) fn module(
        &self,
        layer: usize,
        target: Target,
        config: &Config,
    ) -> Result<(usize, f64, f64)> {
        let name = module_name(layer, target);
        let rank = match self.rank_pattern.get(&name) {
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
        let alpha = self.alpha_pattern.get(&name).unwrap_or(self.alpha);
        if !alpha.is_finite() || alpha <= 0.0 {
            return refuse(format!("alpha {alpha} of {name} is not a positive number"));
        }
        let alpha = self.plain_alpha(alpha, rank);
        Ok((rank, alpha, alpha / rank as f64))
    }

    /// The alpha whose plain scale alpha / r is the module's scale. A rank-stabilised scale is
    /// alpha / √r.
    pub(super) fn plain_alpha(&self, alpha: f64, rank: usize) -> f64 {
        if self.rank_stabilised {
            alpha * (rank as f64).sqrt()
        } else {
            alpha
        }
    }

    /// Checks that exactly the modules in the settings have tensors.
    pub(super) fn check_covered(&self, shapes: &[Shape], config: &Config) -> Result<()> {
        let beyond = |layer: &&u64| **layer >= config.num_hidden_layers as u64;
        if let Some(layer) = self.layers.iter().flatten().find(beyond) {
            return refuse(format!(
                "layers_to_transform names layer {layer}, which is missing: the model has {}",
                config.num_hidden_layers
            ));
        }
        for layer in 0..config.num_hidden_layers {
            for target in Target::ALL {
                let name = module_name(layer, target);
                let has_tensors = shapes
                    .iter()
                    .any(|shape| (shape.layer, shape.target) == (layer, target));
                match (self.names(layer, &name), has_tensors) {
                    (true, false) => {
                        return Err(Error::Missing(factor_name(layer, target, 'A')));
                    }
                    (false, true) => {
                        return refuse(format!(
                            "target_modules, exclude_modules and layers_to_transform do not name {name}, which has tensors"
                        ));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn names(&self, layer: usize, name: &str) -> bool {
        let is_chosen = |layers: &Vec<u64>| layers.contains(&(layer as u64));
        self.layers.as_ref().is_none_or(is_chosen)
            && self.targets.fit(name)
            && !self.excluded.fit(name)
    }
}

/// Refuses features that are on and would change the numbers. A feature is off if it is null, false
/// or empty.
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
    let initialisation = map.get("init_lora_weights").unwrap_or(&Value::Null);
    let changes_base = initialisation
        .as_str()
        .is_some_and(|name| !INITIALISATIONS.contains(&name));
    if changes_base {
        return refuse(format!(
            "init_lora_weights {initialisation} is not supported: it may have changed the base's \
             weights; for PiSSA, OLoRA and CorDA, save_pretrained converts the adapter with \
             path_initial_model_for_weight_conversion"
        ));
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
            return refuse(format!(
                "{key} is set, which is not supported; train the adapter without it"
            ));
        }
    }
    Ok(())
}
