//! The checks at the door: everything that a request names exists, fits together and fits into memory, before anything is
//! queued. The outcome names every part by digest.

use std::sync::Arc;

use togi_model::{
    Precision,
    memory::{Plan, plan, weights},
};
use togi_proto::trainer::v1 as proto;
use togi_runtime::{Store, layout, memory, registry::Identity};
use togi_tokens::{DatasetManifest, Split};

use crate::{
    bases::{Bases, Facts},
    dataset,
    error::{Error, Result},
    gate::{Gate, questions},
    policy::Policy,
    recipe::{Promote, Recipe},
    request::{self, By, JobRequest},
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
        if let Some(gate) = &asked.gate {
            Gate::from_proto(gate)?;
        }
        let recipe = Recipe::from_proto(&asked.recipe.clone().unwrap_or_default())?;
        recipe.check_built()?;
        if recipe.promote == Promote::Auto || !asked.alias.is_empty() {
            layout::validate_name("alias", &asked.alias)?;
        }
        check_key(asked)?;
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
        if asked.policy.is_empty() {
            return self.check_parts(asked).await;
        }
        check_policy_alone(asked)?;
        let unknown = || {
            let message = format!("policy {:?} does not exist", asked.policy);
            togi_runtime::Error::not_found(message).with_field("policy")
        };
        let policy = Policy::in_force(&self.store, &asked.policy).await?;
        let policy = policy.ok_or_else(unknown)?;
        let name = &policy.body.dataset;
        let Some((revision, named)) = dataset::newest(&self.store, name).await? else {
            return Err(dataset::unknown(name));
        };
        let mut checked = self.check_parts(&policy.request(named.dataset)).await?;
        let request = &mut checked.request;
        request.request.policy.clone_from(&asked.policy);
        request
            .request
            .idempotency_key
            .clone_from(&asked.idempotency_key);
        request.origin = Some(policy.origin(revision, By::Request));
        Ok(checked)
    }

    async fn check_parts(&self, asked: &proto::CreateJobRequest) -> Result<Checked> {
        let recipe = self.check_form(asked)?;
        let dataset = dataset::find(&self.store, &asked.dataset).await?;
        let base = self.bases.facts(&asked.base, recipe.precision).await?;
        recipe.check_base(&base.config)?;
        check_fit(&dataset, &base)?;
        if let Some(gate) = &asked.gate {
            check_held_out(&asked.dataset, &dataset)?;
            self.check_questions(&Gate::from_proto(gate)?).await?;
        }
        let rows = dataset.rows(Split::Train);
        let held = self.bases.held(&asked.base);
        let plan = self.plan(&recipe, &base, held, &dataset)?;
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
            origin: None,
        };
        Ok(Checked { request, plan })
    }

    /// Checks that a gate has what it measures; a data set's name that nobody has used yet is taken on trust.
    ///
    /// # Errors
    /// `FailedPrecondition` with field `dataset` if the newest revision has no validation rows; `NotFound` or `InvalidArgument` with
    /// field `gate.questions`; the store's.
    pub async fn check_gate(&self, gate: &Gate, dataset: &str) -> Result<()> {
        if let Some((_, named)) = dataset::newest(&self.store, dataset).await? {
            let manifest = dataset::find(&self.store, &named.dataset).await?;
            check_held_out(dataset, &manifest)?;
        }
        self.check_questions(gate).await
    }

    async fn check_questions(&self, gate: &Gate) -> Result<()> {
        if let Some(upload) = &gate.questions {
            questions::read(&self.store, upload).await?;
        }
        Ok(())
    }

    fn plan(
        &self,
        recipe: &Recipe,
        base: &Facts,
        held: Option<Precision>,
        dataset: &DatasetManifest,
    ) -> Result<proto::MemoryPlan> {
        let tokens = u64::from(recipe.batch_size) * u64::from(dataset.settings.max_length);
        let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
        let plan = plan(&base.config, &recipe.lora, tokens, recipe.precision);
        // The job takes these weights over, or lets them go before it loads its own.
        let resident = held.map_or(0, |precision| weights(&base.config, precision));
        let available = match self.memory_bytes {
            // What the system has available is beside the weights that this process holds already.
            0 => memory::available_bytes().map_or(u64::MAX, |bytes| bytes.saturating_add(resident)),
            bytes => bytes,
        };
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

fn check_key(asked: &proto::CreateJobRequest) -> Result<()> {
    if asked.idempotency_key.len() > 256 {
        return Err(Error::invalid("idempotency_key", "has more than 256 bytes"));
    }
    Ok(())
}

/// A request that names a policy says nothing that the policy says.
///
/// # Errors
/// [`Error::Invalid`] with the first field that is set all the same.
pub(crate) fn check_policy_alone(asked: &proto::CreateJobRequest) -> Result<()> {
    check_key(asked)?;
    layout::validate_name("policy", &asked.policy)?;
    let set = [
        ("base", !asked.base.is_empty()),
        ("dataset", !asked.dataset.is_empty()),
        ("recipe", asked.recipe.is_some()),
        ("alias", !asked.alias.is_empty()),
        ("gate", asked.gate.is_some()),
    ];
    match set.into_iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => Err(Error::invalid(field, "is the policy's to say")),
        None => Ok(()),
    }
}

/// A gate needs rows that are not trained on.
fn check_held_out(name: &str, manifest: &DatasetManifest) -> Result<()> {
    if manifest.rows(Split::Validation) > 0 {
        return Ok(());
    }
    let reason = format!(
        "{name:?} has no validation rows, on which the gate measures; prepare it with a validation_share"
    );
    Err(Error::unfit("dataset", reason))
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
