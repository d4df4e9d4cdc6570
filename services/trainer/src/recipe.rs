//! A validated recipe: the numbers of a training run, complete and in range. Knows nothing of
//! bases, data or jobs.
//!
//! `api/recipe.rs` has its form in files and in the store.

use serde_json::json;
use togi_common::{Digest, canonical};
pub use togi_model::Precision;
use togi_model::{Config, LoraConfig, Target, optim};

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

impl Promote {
    /// Returns the name in recipes.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Manual => "manual",
        }
    }

    /// Returns the promotion with this name; the default for an empty one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown name.
    pub(crate) fn from_name(name: &str) -> Result<Self> {
        match name {
            "" | "auto" => Ok(Self::Auto),
            "manual" => Ok(Self::Manual),
            other => {
                let reason = format!("is {other:?}; known are auto, manual");
                Err(Error::invalid("recipe.promote", reason))
            }
        }
    }
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
    /// By how much the mean loss of the last tenth of the steps may be above that of the first.
    pub max_loss_rise: f64,
    /// The low-rank part.
    pub lora: LoraConfig,
}

impl Default for Recipe {
    /// The contract's defaults.
    fn default() -> Self {
        Self {
            name: String::new(),
            precision: Precision::F32,
            epochs: 1,
            max_steps: 0,
            batch_size: 4,
            accumulation: 1,
            learning_rate: 2e-4,
            warmup_steps: 0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.0,
            max_gradient_norm: 1.0,
            seed: 42,
            shuffle: true,
            checkpoint_every: 100,
            promote: Promote::Auto,
            max_loss_rise: 1.0,
            lora: LoraConfig {
                rank: 8,
                alpha: 32.0,
                dropout: 0.1,
                targets: vec![Target::QueryKeyValue],
            },
        }
    }
}

impl Recipe {
    /// Checks every number's range.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first field that is out of range.
    pub(crate) fn checked(self) -> Result<Self> {
        at_least_one("recipe.lora.rank", self.lora.rank as u64)?;
        positive("recipe.lora.alpha", self.lora.alpha)?;
        below_one("recipe.lora.dropout", self.lora.dropout)?;
        if self.name.len() > 200 || self.name.chars().any(char::is_control) {
            let reason = "is longer than 200 bytes or has control characters";
            return Err(Error::invalid("recipe.name", reason));
        }
        at_least_one("recipe.epochs", self.epochs.into())?;
        at_least_one("recipe.batch_size", self.batch_size.into())?;
        at_least_one("recipe.accumulation", self.accumulation.into())?;
        positive("recipe.learning_rate", self.learning_rate)?;
        below_one("recipe.adam_beta1", self.adam_beta1)?;
        below_one("recipe.adam_beta2", self.adam_beta2)?;
        positive("recipe.adam_epsilon", self.adam_epsilon)?;
        not_negative("recipe.weight_decay", self.weight_decay)?;
        not_negative("recipe.max_gradient_norm", self.max_gradient_norm)?;
        not_negative("recipe.max_loss_rise", self.max_loss_rise)?;
        if self.window() > MOST_RECORDS {
            let reason = format!(
                "times recipe.accumulation is {}; at most {MOST_RECORDS}",
                self.window()
            );
            return Err(Error::invalid("recipe.batch_size", reason));
        }
        Ok(self)
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
    /// without the name, the interval of checkpoints, the promotion and what it needs, which change
    /// no number.
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
    /// [`Error::Invalid`] where the rank is above the hidden size; [`Error::Unfit`] where the base
    /// has dropout of its own, which PEFT would apply in training and this trainer does not.
    pub fn check_base(&self, config: &Config) -> Result<()> {
        if self.lora.rank > config.hidden_size {
            let reason = format!(
                "is {}, above the base's hidden size {}",
                self.lora.rank, config.hidden_size
            );
            return Err(Error::invalid("recipe.lora.rank", reason));
        }
        match config
            .dropouts()
            .into_iter()
            .find(|&(_, share)| share != 0.0)
        {
            Some((name, share)) => {
                let reason = format!(
                    "has {name} {share} in its config.json, which is not applied in training; \
                     train over a copy that has 0 there"
                );
                Err(Error::unfit("base", reason))
            }
            None => Ok(()),
        }
    }
}

/// Returns the targets with these names, in the network's order, so that the order in a file
/// changes no digest. Without names it is the default target.
///
/// # Errors
/// [`Error::Invalid`] for a name that is unknown or there twice.
pub(crate) fn targets(names: &[String]) -> Result<Vec<Target>> {
    let invalid = |reason| Error::invalid("recipe.lora.target_modules", reason);
    let mut targets = Vec::new();
    for name in names {
        let target = Target::from_name(name).map_err(|_| {
            let known: Vec<&str> = Target::ALL.iter().map(|target| target.name()).collect();
            invalid(format!("has {name:?}; known are {}", known.join(", ")))
        })?;
        if targets.contains(&target) {
            return Err(invalid(format!("has {name:?} twice")));
        }
        targets.push(target);
    }
    if targets.is_empty() {
        return Ok(Recipe::default().lora.targets);
    }
    targets.sort_unstable();
    Ok(targets)
}

/// Returns the precision with this name; the default for an empty one.
///
/// # Errors
/// [`Error::Invalid`] for an unknown name.
pub(crate) fn precision(name: &str) -> Result<Precision> {
    if name.is_empty() {
        return Ok(Recipe::default().precision);
    }
    Precision::from_name(name).map_err(|_| {
        let known = Precision::ALL.map(Precision::name).join(", ");
        let reason = format!("is {name:?}; known are {known}");
        Error::invalid("recipe.base_precision", reason)
    })
}

fn at_least_one(field: &'static str, value: u64) -> Result<()> {
    check(field, value > 0, "is 0; at least 1 is needed")
}

/// NaN is neither above nor below anything, so finiteness comes first in each of these.
fn finite(field: &'static str, value: f64) -> Result<()> {
    let reason = format!("is {value}; a finite number is needed");
    check(field, value.is_finite(), &reason)
}

fn positive(field: &'static str, value: f64) -> Result<()> {
    finite(field, value)?;
    let reason = format!("is {value}; it must be above 0");
    check(field, value > 0.0, &reason)
}

fn not_negative(field: &'static str, value: f64) -> Result<()> {
    finite(field, value)?;
    let reason = format!("is {value}; it must not be negative");
    check(field, value >= 0.0, &reason)
}

fn below_one(field: &'static str, value: f64) -> Result<()> {
    finite(field, value)?;
    let reason = format!("is {value}; it must be at least 0 and below 1");
    check(field, (0.0..1.0).contains(&value), &reason)
}

fn check(field: &'static str, holds: bool, reason: &str) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::invalid(field, reason))
    }
}

#[cfg(test)]
mod tests;
