//! Publishes a trained state as an adapter and promotes it: the files, then the manifest, then the
//! reports and the event. Every part can be repeated. The lease is checked before each part that
//! others can see.

use bytes::Bytes;
use object_store::path::Path;
use togi_common::{AliasName, Digest, Generation};
use togi_model::engine::BIT_EXACT;
use togi_model::memory::trainable;
use togi_runtime::process::memory;
use togi_runtime::registry::adapter_manifest::{
    ADAPTER_MANIFEST_VERSION, AdapterFile, AdapterManifest,
};
use togi_runtime::registry::aliases::Alias;
use togi_runtime::worker::Claim;
use togi_runtime::worker::lease::Lease;
use togi_runtime::{Class, Store, layout};
use tracing::{Instrument as _, info, info_span};

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::gate::Evaluation;
use crate::learn::losses;
use crate::learn::train::State;
use crate::papers::report::{self, RunSummary};
use crate::papers::{log, tensorboard};
use crate::patience::retry;
use crate::registry;
use crate::run::announcement::Announcement;
use crate::run::job::Job;
use crate::run::parts::Parts;

/// An adapter that was published.
pub(crate) struct Published {
    pub(crate) generation: Generation,
    /// Why it must not be promoted: its training diverged.
    pub(crate) divergence: Option<String>,
}

/// The part that confirms a lease.
const NATS: &str = "NATS";

/// Publishes the adapter of a finished run.
///
/// # Errors
/// `Aborted` if another worker has taken over the job; the store's errors.
pub(crate) async fn publish(
    parts: &Parts,
    claim: &Claim,
    job: &Job,
    state: &State,
) -> Result<Published> {
    let (store, lease) = (&parts.store, &claim.lease);
    let adapter = Adapter::new(
        &state.lora,
        &job.base.public_name,
        &job.request.identity,
        &job.recipe,
    )?;
    let generation = adapter.generation;
    let manifest = manifest(job, &adapter);
    may_publish(lease).await?;
    let lines = retry!(lease, log::finish(store, &job.id))?;
    retry!(lease, write(store, &adapter, &manifest))?;
    let facts = RunSummary {
        device: parts.bases.device(),
        ..facts(claim, job, state, &adapter)
    };
    let start = claim.job.create_time.as_second();
    let events = format!("events.out.tfevents.{start}.{}", job.id);
    let papers = [
        (
            layout::job_report(&job.id),
            serde_json::to_vec_pretty(&report::report(&facts, &job.recipe, &lines))?,
        ),
        (
            layout::job_trainer_state(&job.id),
            serde_json::to_vec_pretty(&report::trainer_state(&job.recipe, &lines))?,
        ),
        (
            layout::job_run(&job.id, &events),
            tensorboard::events_file(start as f64, &report::timed(&lines)),
        ),
    ];
    for (path, bytes) in papers {
        let bytes = Bytes::from(bytes);
        retry!(lease, put_first(store, &path, bytes.clone()))?;
    }
    info!(job = %job.id, %generation, "adapter published");
    let published = Announcement::AdapterPublished {
        job: &job.id,
        generation,
    };
    parts.announce(published).await;
    Ok(Published {
        generation,
        divergence: losses::divergence(&lines, job.recipe.max_loss_rise),
    })
}

/// Points the job's alias at its adapter, unless the alias has moved away from the adapter that
/// the gate compared with. Returns the alias as it is afterwards.
///
/// # Errors
/// As [`publish`]; nothing was promoted then.
pub(crate) async fn promote(
    parts: &Parts,
    claim: &Claim,
    job: &Job,
    generation: Generation,
    gate: Option<&Evaluation>,
) -> Result<Option<Alias>> {
    let lease = &claim.lease;
    let alias: AliasName = layout::parse("alias", &job.request.request.alias)?;
    let since = claim.job.create_time;
    may_publish(lease).await?;
    let span = info_span!("promote", alias = alias.as_str(), %generation);
    retry!(
        lease,
        registry::promote_once(&parts.aliases, &alias, generation, since, gate)
            .instrument(span.clone())
    )
}

/// Fails if another worker has the job, or if it has ended.
async fn may_publish(lease: &Lease) -> Result<()> {
    let held = async || Ok::<_, Error>(lease.check().await?);
    let open = async || Ok::<_, Error>(lease.still_open().await?);
    retry!(lease, NATS, held())?;
    retry!(lease, open())
}

/// Describes the folder's files and the inputs of the run.
fn manifest(job: &Job, adapter: &Adapter) -> AdapterManifest {
    let recipe = &job.recipe;
    AdapterManifest {
        schema_version: ADAPTER_MANIFEST_VERSION,
        generation: adapter.generation,
        identity: job.request.identity.clone(),
        rank: u32::try_from(recipe.lora.rank).unwrap_or(u32::MAX),
        alpha: recipe.lora.alpha,
        target_modules: recipe.target_names(),
        files: adapter
            .files
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), described(bytes)))
            .collect(),
        job: job.id.to_string(),
        recipe_name: recipe.name.clone(),
        bit_exact: BIT_EXACT,
    }
}

async fn write(store: &Store, adapter: &Adapter, manifest: &AdapterManifest) -> Result<()> {
    for (name, bytes) in &adapter.files {
        store
            .put_new(
                &layout::adapter_file(adapter.generation, name),
                bytes.clone(),
            )
            .await?;
    }
    let path = layout::adapter_manifest(adapter.generation);
    match store.put_new_json(&path, manifest).await {
        Ok(_) => Ok(()),
        // Another job made the same generation. Its names stay; all other fields must agree.
        Err(error) if error.class() == Class::AlreadyExists => {
            let theirs: AdapterManifest = store.get_json(&path).await?;
            let ours = AdapterManifest {
                job: theirs.job.clone(),
                recipe_name: theirs.recipe_name.clone(),
                ..manifest.clone()
            };
            if theirs == ours {
                return Ok(());
            }
            Err(Error::damaged(
                path.to_string(),
                "it is another adapter's under the same generation",
            ))
        }
        Err(error) => Err(error.into()),
    }
}

fn described(bytes: &[u8]) -> AdapterFile {
    AdapterFile {
        bytes: bytes.len() as u64,
        sha256: Digest::of(bytes).to_string(),
    }
}

fn facts(claim: &Claim, job: &Job, state: &State, adapter: &Adapter) -> RunSummary {
    RunSummary {
        job: job.id.to_string(),
        generation: adapter.generation,
        base_origin: job.base.origin.clone(),
        rows: job.request.rows,
        samples: state.progress.samples,
        seconds: state.progress.seconds,
        failed_attempts: claim.job.attempts,
        worker: claim.job.worker.clone(),
        device: String::new(),
        peak_memory_bytes: memory::peak_bytes(),
        adapter_bytes: adapter.tensors_bytes(),
        trainable_parameters: trainable(&job.base.config, &job.recipe.lora),
        base_parameters: job.base.config.parameters(),
    }
}

/// Writes a document unless it exists. Its times differ between attempts; the first one stays.
async fn put_first(store: &Store, path: &Path, bytes: Bytes) -> Result<()> {
    match store.put_new(path, bytes).await {
        Ok(_) => Ok(()),
        Err(error) if error.class() == Class::AlreadyExists => Ok(()),
        Err(error) => Err(error.into()),
    }
}
