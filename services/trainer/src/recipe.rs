//! A validated recipe: the numbers of a training run, complete and in range. Knows nothing of
//! bases, data or jobs.
//!
//! A recipe file is the TOML form of `togi.trainer.v1.Recipe`; a field that is not set has the
//! contract's default.

use serde_json::json;
use togi_common::{Digest, canonical};
pub use togi_model::Precision;
use togi_model::{Config, LoraConfig, Target, optim};
use togi_proto::trainer::v1 as proto;

use crate::error::{Error, Result};

/// Most records in an optimizer step: beyond it a mistake is likelier than an intention.
const MOST_RECORDS: u64 = 65_536;

/// How a published adapter is promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promote {
    /// The alias names it at once.
    Auto,
    /// It is promoted by hand, or not at all.
    Manual,
}

/// A complete recipe, every number in range.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// For people.
    pub name: String,
    /// How the base is held.
    pub precision: Precision,
    /// Passes over the data.
    pub epochs: u32,
    /// The maximum of optimizer steps; 0 for no limit.
    pub max_steps: u64,
    /// Records in a micro-batch.
    pub batch_size: u32,
    /// Micro-batches in an optimizer step.
    pub accumulation: u32,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// AdamW's first beta.
    pub adam_beta1: f64,
    /// AdamW's second beta.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Largest gradient norm; 0 for no clipping.
    pub max_gradient_norm: f64,
    /// Seed of initialisation, order and dropout.
    pub seed: u64,
    /// A new order every epoch.
    pub shuffle: bool,
    /// Optimizer steps between checkpoints; 0 for only the last.
    pub checkpoint_every: u64,
    /// How the adapter is promoted.
    pub promote: Promote,
    /// The low-rank part.
    pub lora: LoraConfig,
}

impl Recipe {
    /// Validates a recipe and fills in the defaults.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first field that is out of range.
    pub fn from_proto(recipe: &proto::Recipe) -> Result<Recipe> {
        let r = recipe;
        let lora = lora(&r.lora.clone().unwrap_or_default())?;
        let recipe = Recipe {
            name: name(&r.name)?,
            precision: precision(&r.base_precision)?,
            epochs: at_least_one("recipe.epochs", r.epochs.unwrap_or(1))?,
            max_steps: r.max_steps.unwrap_or(0),
            batch_size: at_least_one("recipe.batch_size", r.batch_size.unwrap_or(4))?,
            accumulation: at_least_one("recipe.accumulation", r.accumulation.unwrap_or(1))?,
            learning_rate: positive("recipe.learning_rate", r.learning_rate.unwrap_or(2e-4))?,
            warmup_steps: r.warmup_steps.unwrap_or(0),
            adam_beta1: below_one("recipe.adam_beta1", r.adam_beta1.unwrap_or(0.9))?,
            adam_beta2: below_one("recipe.adam_beta2", r.adam_beta2.unwrap_or(0.999))?,
            adam_epsilon: positive("recipe.adam_epsilon", r.adam_epsilon.unwrap_or(1e-8))?,
            weight_decay: not_negative("recipe.weight_decay", r.weight_decay.unwrap_or(0.0))?,
            max_gradient_norm: not_negative(
                "recipe.max_gradient_norm",
                r.max_gradient_norm.unwrap_or(1.0),
            )?,
            seed: r.seed.unwrap_or(42),
            shuffle: r.shuffle.unwrap_or(true),
            checkpoint_every: r.checkpoint_every.unwrap_or(100),
            promote: promote(&r.promote)?,
            lora,
        };
        if recipe.window() > MOST_RECORDS {
            let reason = format!(
                "times recipe.accumulation is {}; at most {MOST_RECORDS}",
                recipe.window()
            );
            return Err(Error::invalid("recipe.batch_size", reason));
        }
        Ok(recipe)
    }

    /// Reads a recipe file: TOML with the contract's names.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not TOML, has an unknown field, or a number out of range.
    pub fn from_toml(text: &str) -> Result<Recipe> {
        let recipe: proto::Recipe = toml::from_str(text).map_err(|error| {
            Error::invalid("recipe", format!("is no recipe: {}", error.message()))
        })?;
        Recipe::from_proto(&recipe)
    }

    /// Returns the recipe with every field set.
    #[must_use]
    pub fn to_proto(&self) -> proto::Recipe {
        proto::Recipe {
            name: self.name.clone(),
            base_precision: self.precision.name().to_owned(),
            epochs: Some(self.epochs),
            max_steps: Some(self.max_steps),
            batch_size: Some(self.batch_size),
            accumulation: Some(self.accumulation),
            learning_rate: Some(self.learning_rate),
            warmup_steps: Some(self.warmup_steps),
            adam_beta1: Some(self.adam_beta1),
            adam_beta2: Some(self.adam_beta2),
            adam_epsilon: Some(self.adam_epsilon),
            weight_decay: Some(self.weight_decay),
            max_gradient_norm: Some(self.max_gradient_norm),
            seed: Some(self.seed),
            shuffle: Some(self.shuffle),
            checkpoint_every: Some(self.checkpoint_every),
            promote: match self.promote {
                Promote::Auto => "auto".to_owned(),
                Promote::Manual => "manual".to_owned(),
            },
            lora: Some(proto::Lora {
                rank: Some(u32::try_from(self.lora.rank).unwrap_or(u32::MAX)),
                alpha: Some(self.lora.alpha),
                dropout: Some(self.lora.dropout),
                target_modules: self.target_names(),
            }),
        }
    }

    /// Names of the adapted modules, in the network's order.
    #[must_use]
    pub fn target_names(&self) -> Vec<String> {
        self.lora
            .targets
            .iter()
            .map(|target| target.name().to_owned())
            .collect()
    }

    /// Returns the optimizer's constants.
    #[must_use]
    pub fn optimizer(&self) -> optim::AdamWConfig {
        optim::AdamWConfig {
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            eps: self.adam_epsilon,
            weight_decay: self.weight_decay,
        }
    }

    /// Records in an optimizer step.
    #[must_use]
    pub fn window(&self) -> u64 {
        u64::from(self.batch_size) * u64::from(self.accumulation)
    }

    /// Optimizer steps over `rows` records: a last partial window counts.
    #[must_use]
    pub fn steps(&self, rows: u64) -> u64 {
        let all = rows
            .div_ceil(self.window())
            .saturating_mul(u64::from(self.epochs));
        if self.max_steps == 0 {
            all
        } else {
            all.min(self.max_steps)
        }
    }

    /// Digest of everything that changes the result: SHA-256 of the canonical JSON (sorted keys)
    /// without the name, the interval of checkpoints and the promotion, which change no number.
    #[must_use]
    pub fn digest(&self) -> String {
        let canonical = canonical::json(&json!({
            "accumulation": self.accumulation,
            "adam_beta1": self.adam_beta1,
            "adam_beta2": self.adam_beta2,
            "adam_epsilon": self.adam_epsilon,
            "base_precision": self.precision.name(),
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "lora_alpha": self.lora.alpha,
            "lora_dropout": self.lora.dropout,
            "lora_rank": self.lora.rank,
            "lora_target_modules": self.target_names(),
            "max_gradient_norm": self.max_gradient_norm,
            "max_steps": self.max_steps,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "warmup_steps": self.warmup_steps,
            "weight_decay": self.weight_decay,
        }));
        Digest::of(canonical.expect("it is JSON already")).to_string()
    }

    /// Checks the recipe against the base that it shall train.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the rank is above the hidden size.
    pub fn check_base(&self, config: &Config) -> Result<()> {
        if self.lora.rank > config.hidden_size {
            let reason = format!(
                "is {}, above the base's hidden size {}",
                self.lora.rank, config.hidden_size
            );
            return Err(Error::invalid("recipe.lora.rank", reason));
        }
        Ok(())
    }
}

fn lora(lora: &proto::Lora) -> Result<LoraConfig> {
    let rank = at_least_one("recipe.lora.rank", lora.rank.unwrap_or(8))?;
    let mut targets = Vec::new();
    for name in &lora.target_modules {
        let target = Target::from_name(name).map_err(|_| {
            let known: Vec<&str> = Target::ALL.iter().map(|target| target.name()).collect();
            Error::invalid(
                "recipe.lora.target_modules",
                format!("has {name:?}; known are {}", known.join(", ")),
            )
        })?;
        if targets.contains(&target) {
            return Err(Error::invalid(
                "recipe.lora.target_modules",
                format!("has {name:?} twice"),
            ));
        }
        targets.push(target);
    }
    if targets.is_empty() {
        targets.push(Target::QueryKeyValue);
    }
    // One order for one set, so that the order in a file changes no digest.
    targets.sort_unstable();
    Ok(LoraConfig {
        rank: rank as usize,
        alpha: positive("recipe.lora.alpha", lora.alpha.unwrap_or(32.0))?,
        dropout: below_one("recipe.lora.dropout", lora.dropout.unwrap_or(0.1))?,
        targets,
    })
}

fn name(name: &str) -> Result<String> {
    if name.len() > 200 || name.chars().any(char::is_control) {
        return Err(Error::invalid(
            "recipe.name",
            "is longer than 200 bytes or has control characters",
        ));
    }
    Ok(name.to_owned())
}

fn precision(name: &str) -> Result<Precision> {
    if name.is_empty() {
        return Ok(Precision::F32);
    }
    Precision::from_name(name).map_err(|_| {
        let known = Precision::ALL.map(Precision::name).join(", ");
        Error::invalid(
            "recipe.base_precision",
            format!("is {name:?}; known are {known}"),
        )
    })
}

fn promote(name: &str) -> Result<Promote> {
    match name {
        "" | "auto" => Ok(Promote::Auto),
        "manual" => Ok(Promote::Manual),
        other => Err(Error::invalid(
            "recipe.promote",
            format!("is {other:?}; known are auto, manual"),
        )),
    }
}

fn at_least_one(field: &'static str, value: u32) -> Result<u32> {
    if value == 0 {
        Err(Error::invalid(field, "is 0; at least 1 is needed"))
    } else {
        Ok(value)
    }
}

/// NaN is neither above nor below anything, so finiteness comes first in each of these.
fn finite(field: &'static str, value: f64) -> Result<f64> {
    if value.is_finite() {
        Ok(value)
    } else {
        Err(Error::invalid(
            field,
            format!("is {value}; a finite number is needed"),
        ))
    }
}

fn positive(field: &'static str, value: f64) -> Result<f64> {
    if finite(field, value)? > 0.0 {
        Ok(value)
    } else {
        Err(Error::invalid(
            field,
            format!("is {value}; it must be above 0"),
        ))
    }
}

fn not_negative(field: &'static str, value: f64) -> Result<f64> {
    if finite(field, value)? >= 0.0 {
        Ok(value)
    } else {
        Err(Error::invalid(
            field,
            format!("is {value}; it must not be negative"),
        ))
    }
}

fn below_one(field: &'static str, value: f64) -> Result<f64> {
    if (0.0..1.0).contains(&finite(field, value)?) {
        Ok(value)
    } else {
        Err(Error::invalid(
            field,
            format!("is {value}; it must be at least 0 and below 1"),
        ))
    }
}

#[cfg(test)]
mod tests;
