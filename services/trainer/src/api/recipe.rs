//! A recipe's message, which is also its TOML form in files and its JSON in the store.

use togi_model::LoraConfig;
use togi_proto::trainer::v1 as proto;

use crate::api::stored::stored_as;
use crate::error::{Error, Result};
use crate::recipe::{Promote, Recipe, precision, targets};

stored_as!(Recipe, proto::Recipe);

impl Recipe {
    /// Reads a recipe file: TOML with the contract's names.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not TOML, has an unknown field, or a number out of range.
    pub fn from_toml(text: &str) -> Result<Self> {
        let recipe: proto::Recipe = toml::from_str(text).map_err(|error| {
            Error::invalid("recipe", format!("is no recipe: {}", error.message()))
        })?;
        recipe.try_into()
    }
}

impl TryFrom<proto::Recipe> for Recipe {
    type Error = Error;

    /// # Errors
    /// [`Error::Invalid`] with the first field that is out of range.
    fn try_from(recipe: proto::Recipe) -> Result<Self> {
        let (r, default) = (recipe, Self::default());
        let lora = r.lora.unwrap_or_default();
        Self {
            name: r.name,
            precision: precision(&r.base_precision)?,
            epochs: r.epochs.unwrap_or(default.epochs),
            max_steps: r.max_steps.unwrap_or(default.max_steps),
            batch_size: r.batch_size.unwrap_or(default.batch_size),
            accumulation: r.accumulation.unwrap_or(default.accumulation),
            learning_rate: r.learning_rate.unwrap_or(default.learning_rate),
            warmup_steps: r.warmup_steps.unwrap_or(default.warmup_steps),
            adam_beta1: r.adam_beta1.unwrap_or(default.adam_beta1),
            adam_beta2: r.adam_beta2.unwrap_or(default.adam_beta2),
            adam_epsilon: r.adam_epsilon.unwrap_or(default.adam_epsilon),
            weight_decay: r.weight_decay.unwrap_or(default.weight_decay),
            max_gradient_norm: r.max_gradient_norm.unwrap_or(default.max_gradient_norm),
            seed: r.seed.unwrap_or(default.seed),
            shuffle: r.shuffle.unwrap_or(default.shuffle),
            checkpoint_every: r.checkpoint_every.unwrap_or(default.checkpoint_every),
            promote: Promote::from_name(&r.promote)?,
            max_loss_rise: r.max_loss_rise.unwrap_or(default.max_loss_rise),
            lora: LoraConfig {
                rank: lora.rank.map_or(default.lora.rank, |rank| rank as usize),
                alpha: lora.alpha.unwrap_or(default.lora.alpha),
                dropout: lora.dropout.unwrap_or(default.lora.dropout),
                targets: targets(&lora.target_modules)?,
            },
        }
        .checked()
    }
}

impl From<&Recipe> for proto::Recipe {
    fn from(recipe: &Recipe) -> Self {
        Self {
            name: recipe.name.clone(),
            base_precision: recipe.precision.name().to_owned(),
            epochs: Some(recipe.epochs),
            max_steps: Some(recipe.max_steps),
            batch_size: Some(recipe.batch_size),
            accumulation: Some(recipe.accumulation),
            learning_rate: Some(recipe.learning_rate),
            warmup_steps: Some(recipe.warmup_steps),
            adam_beta1: Some(recipe.adam_beta1),
            adam_beta2: Some(recipe.adam_beta2),
            adam_epsilon: Some(recipe.adam_epsilon),
            weight_decay: Some(recipe.weight_decay),
            max_gradient_norm: Some(recipe.max_gradient_norm),
            seed: Some(recipe.seed),
            shuffle: Some(recipe.shuffle),
            checkpoint_every: Some(recipe.checkpoint_every),
            promote: recipe.promote.name().to_owned(),
            // Not written where it is the default, so that stored requests keep their spelling and
            // a repeated one is the same job.
            max_loss_rise: Some(recipe.max_loss_rise)
                .filter(|rise| *rise != Recipe::default().max_loss_rise),
            lora: Some(proto::Lora {
                rank: Some(u32::try_from(recipe.lora.rank).unwrap_or(u32::MAX)),
                alpha: Some(recipe.lora.alpha),
                dropout: Some(recipe.lora.dropout),
                target_modules: recipe.target_names(),
            }),
        }
    }
}
