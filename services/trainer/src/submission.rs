//! The checks at the door: everything that a request names exists, fits together and fits into memory, before anything is
//! queued. The outcome names every part by digest.

use std::sync::Arc;

use togi_model::memory::{Plan, plan};
use togi_proto::trainer::v1 as proto;
use togi_runtime::{Store, layout, registry::Identity};
use togi_tokens::{DatasetManifest, Split};

use crate::{
    bases::{Bases, Facts},
    dataset,
    error::{Error, Result},
    recipe::{Promote, Recipe},
    request::{self, JobRequest},
};

/// A request that was checked.
#[derive(Clone, Debug)]
pub struct Checked {
    /// What the job will be asked.
    pub request: JobRequest,
    /// What it will hold in memory.
    pub plan: proto::MemoryPlan,
}

/// Checks requests.
#[derive(Clone)]
pub struct Desk {
    store: Store,
    bases: Bases,
    memory_bytes: u64,
}

impl Desk {
    /// Returns a desk; `memory_bytes` is what a job may plan for, 0 for what the system says.
    #[must_use]
    pub fn new(store: Store, bases: Bases, memory_bytes: u64) -> Desk {
        Desk {
            store,
            bases,
            memory_bytes,
        }
    }

    /// Checks what needs neither the base nor the data set: for a policy, whose data set may not exist yet.
    ///
    /// # Errors
    /// As [`Desk::check`].
    pub fn check_form(&self, asked: &proto::CreateJobRequest) -> Result<Recipe> {
        let recipe = Recipe::from_proto(&asked.recipe.clone().unwrap_or_default())?;
        recipe.check_built()?;
        if recipe.promote == Promote::Auto || !asked.alias.is_empty() {
            layout::validate_name("alias", &asked.alias)?;
        }
        if asked.idempotency_key.len() > 256 {
            return Err(Error::invalid("idempotency_key", "has more than 256 bytes"));
        }
        self.bases.configured(&asked.base)?;
        Ok(recipe)
    }

    /// Checks a request. Cheap checks come first; the base is loaded at most once in the life of the process.
    ///
    /// # Errors
    /// Each with the field at fault: `InvalidArgument` for a value that is wrong in itself, `NotFound` for a base or data set
    /// that is not there, `FailedPrecondition` for parts that do not fit each other, `Unimplemented` for a precision that
    /// is not built, `ResourceExhausted` for too little memory.
    pub async fn check(&self, asked: &proto::CreateJobRequest) -> Result<Checked> {
        let recipe = self.check_form(asked)?;
        let dataset = dataset::find(&self.store, &asked.dataset).await?;
        let base = self.bases.facts(&asked.base, recipe.precision).await?;
        recipe.check_base(&base.config)?;
        check_fit(&dataset, &base)?;
        let rows = dataset.rows(Split::Train);
        let available = self.available(&asked.base);
        let plan = self.plan(&recipe, &base, available, &dataset)?;
        let identity = Identity {
            base: base.digest.clone(),
            base_precision: recipe.precision.name().to_owned(),
            tokenizer: base.tokenizer_digest.clone(),
            template: dataset.template_digest.clone(),
            dataset: dataset.dataset.clone(),
            recipe: recipe.digest(),
        };
        let request = JobRequest {
            request: request::normal(asked)?,
            identity,
            rows,
            steps: recipe.steps(rows),
        };
        Ok(Checked { request, plan })
    }

    fn available(&self, base: &str) -> Option<u64> {
        match self.memory_bytes {
            0 => self.bases.available(base),
            bytes => Some(bytes),
        }
    }

    fn plan(
        &self,
        recipe: &Recipe,
        base: &Facts,
        available: Option<u64>,
        dataset: &DatasetManifest,
    ) -> Result<proto::MemoryPlan> {
        let tokens = u64::from(recipe.batch_size) * u64::from(dataset.settings.max_length);
        let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
        let plan = plan(&base.config, &recipe.lora, tokens, recipe.precision);
        let available = available.unwrap_or(u64::MAX);
        let plan = to_proto(&plan, available);
        if plan.total_bytes > plan.available_bytes {
            return Err(Error::Memory {
                needed: plan.total_bytes,
                available,
                plan: format!(
                    "weights {}, lora {}, optimizer {}, activations {}",
                    plan.weights_bytes,
                    plan.lora_bytes,
                    plan.optimizer_bytes,
                    plan.activations_bytes
                ),
            });
        }
        Ok(plan)
    }
}

/// The contract counts gradients with the optimizer, the engine with the values that they belong to.
fn to_proto(plan: &Plan, available: u64) -> proto::MemoryPlan {
    let gradients = plan.lora / 2;
    proto::MemoryPlan {
        weights_bytes: plan.weights,
        lora_bytes: plan.lora - gradients,
        optimizer_bytes: plan.optimizer + gradients,
        activations_bytes: plan.activations,
        total_bytes: plan.total(),
        available_bytes: available,
    }
}

fn check_fit(dataset: &DatasetManifest, base: &Arc<Facts>) -> Result<()> {
    if dataset.rows(Split::Train) == 0 {
        return Err(Error::unfit(
            "dataset",
            format!("{} has no rows to train on", dataset.dataset),
        ));
    }
    if dataset.tokenizer_digest != base.tokenizer_digest {
        let reason = format!(
            "was cut by tokenizer {}, but the base's tokenizer is {}; prepare it with this base",
            dataset.tokenizer_digest, base.tokenizer_digest
        );
        return Err(Error::unfit("dataset", reason));
    }
    let template = togi_tokens::prompt::template_digest();
    if dataset.template_digest != template {
        let reason = format!(
            "was made with prompt template {}, this build has {template}",
            dataset.template_digest
        );
        return Err(Error::unfit("dataset", reason));
    }
    let (longest, most) = (
        dataset.settings.max_length as usize,
        base.config.max_position_embeddings,
    );
    if longest > most {
        let reason = format!("has max_length {longest}, but the base takes at most {most} ids");
        return Err(Error::unfit("dataset", reason));
    }
    Ok(())
}
