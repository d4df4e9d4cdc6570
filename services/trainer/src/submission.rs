//! Checks a request before its job is queued: every part exists, fits the others and fits into
//! memory. The checked request names every part by digest.

use std::sync::Arc;
use std::time::Duration;

use togi_model::DeviceName;
use togi_runtime::life::deadline::{Deadline, bounded, bounded_by_caller};
use togi_runtime::registry::adapter_manifest::Identity;
use togi_runtime::{Store, layout, rpc};
use togi_tokens::{DatasetManifest, Split};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{Instrument as _, warn};

use crate::bases::{BaseInfo, Bases};
use crate::dataset;
use crate::error::{Error, Result};
use crate::fit::{Lengths, MemoryPlan, Need};
use crate::gate::{Gate, questions};
use crate::learn::data;
use crate::recipe::{Promote, Recipe};
use crate::request::{CreateJob, JobRequest, Resolved, check_key};

const NOTHING_QUEUED: &str = "nothing was queued";
/// How long a plan waits for data-prep.
const PATIENCE: Duration = Duration::from_secs(10);
/// Rows that a plan looks at, all epochs together.
const MOST_READ: u64 = 1 << 22;

/// A checked request.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    /// The job's request.
    pub request: JobRequest,
    /// Its memory plan.
    pub plan: MemoryPlan,
}

/// Checks requests.
#[derive(Clone)]
pub(crate) struct Admission {
    /// The object store.
    pub store: Store,
    /// The configured bases.
    pub bases: Bases,
    /// Data-prep.
    pub data_prep: rpc::client::Client,
    /// Where workers compute.
    pub device: DeviceName,
    /// The memory that a job may plan for; 0 for the available memory.
    pub memory_bytes: u64,
}

impl Admission {
    /// Checks what needs neither the base nor the data set: for a policy, whose data set may not
    /// exist yet.
    ///
    /// # Errors
    /// As [`Admission::check`].
    pub(crate) fn check_form(&self, asked: &CreateJob) -> Result<()> {
        if asked.recipe.promote == Promote::Auto || !asked.alias.is_empty() {
            layout::validate_name("alias", &asked.alias)?;
        }
        check_key(&asked.idempotency_key)?;
        self.bases.check_name(&asked.base)?;
        Ok(())
    }

    /// Checks a request. Cheap checks come first; the base is loaded at most once in the life of
    /// the process.
    ///
    /// # Errors
    /// Each with the field at fault: `InvalidArgument` for a value that is wrong in itself,
    /// `NotFound` for a base or data set that is not there, `FailedPrecondition` for parts that do
    /// not fit each other, `ResourceExhausted` for too little memory.
    pub(crate) async fn check(&self, resolved: &Resolved) -> Result<Checked> {
        let asked = &resolved.request;
        let recipe = &asked.recipe;
        self.check_form(asked)?;
        let finding = dataset::find(&self.store, &asked.dataset);
        let dataset = bounded(NOTHING_QUEUED, finding).await?;
        let base = self.base(asked).await?;
        recipe.check_base(&base.config)?;
        check_fit(&dataset, &base)?;
        if let Some(gate) = &asked.gate {
            check_held_out(&asked.dataset, &dataset)?;
            bounded(NOTHING_QUEUED, self.check_questions(gate)).await?;
        }
        let rows = dataset.rows(Split::Train);
        let need = Need {
            config: base.config.clone(),
            recipe: recipe.clone(),
            device: self.device,
            lengths: self.lengths(recipe, &dataset).await,
        };
        let plan = self.plan(need, self.available(&asked.base)).await?;
        let identity = Identity {
            base: base.digest.clone(),
            base_precision: recipe.precision.name().to_owned(),
            tokenizer: base.tokenizer_digest.clone(),
            template: dataset.template_digest.clone(),
            dataset: dataset.dataset,
            recipe: recipe.digest(),
        };
        let request = JobRequest {
            request: asked.clone(),
            identity,
            rows,
            steps: recipe.steps(rows),
            origin: resolved.origin.clone(),
        };
        Ok(Checked { request, plan })
    }

    /// Returns the properties of a request's base. They are read at its first use, which takes
    /// long for a large one: the reading goes on when the caller has left.
    async fn base(&self, asked: &CreateJob) -> Result<Arc<BaseInfo>> {
        let (bases, name, precision) = (
            self.bases.clone(),
            asked.base.clone(),
            asked.recipe.precision,
        );
        let reading = async move { bases.info(&name, precision).await };
        let reading = tokio::spawn(reading.in_current_span());
        let outcome = "the base is still being read, and nothing was queued";
        let read = async { reading.await.map_err(|_| Error::Panicked)? };
        bounded_by_caller(outcome, read).await
    }

    /// Checks that a gate has rows and questions. A data set's name without a revision passes.
    ///
    /// # Errors
    /// `FailedPrecondition` with field `dataset` if the newest revision has no validation rows;
    /// `NotFound` or `InvalidArgument` with field `gate.questions`; the store's.
    pub(crate) async fn check_gate(&self, gate: &Gate, dataset: &str) -> Result<()> {
        if let Some((_, named)) = dataset::newest(&self.store, dataset).await? {
            let manifest = dataset::manifest(&self.store, named.dataset).await?;
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

    fn available(&self, base: &str) -> Option<u64> {
        match self.memory_bytes {
            0 => self.bases.available(base),
            bytes => Some(bytes),
        }
    }

    /// Returns the rows' lengths from data-prep; a bound for them if it does not answer, or if
    /// there are too many rows.
    async fn lengths(&self, recipe: &Recipe, dataset: &DatasetManifest) -> Lengths {
        let rows = dataset.rows(Split::Train);
        if rows.saturating_mul(recipe.epochs.into()) <= MOST_READ {
            let asked = data::lengths(self.data_prep.clone(), dataset.dataset);
            let left = Deadline::current().map_or(PATIENCE, |deadline| deadline.left() / 2);
            match timeout(PATIENCE.min(left), asked).await {
                Ok(Ok(lengths)) if lengths.len() as u64 == rows => return Lengths::Each(lengths),
                Ok(Err(error)) => warn!(%error, "the plan goes without the rows' lengths"),
                _ => warn!("the plan goes without the rows' lengths: data-prep does not tell"),
            }
        }
        Lengths::AtMost {
            rows,
            length: dataset.settings.max_length,
        }
    }

    async fn plan(&self, need: Need, available: Option<u64>) -> Result<MemoryPlan> {
        let planning = spawn_blocking(move || need.check(available));
        planning.await.map_err(|_| Error::Panicked)?
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

fn check_fit(dataset: &DatasetManifest, base: &Arc<BaseInfo>) -> Result<()> {
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
