//! From a trained state to a published adapter: files first, the manifest last, then the papers, the event, the promotion. Each
//! part can be done again; before what others see, the lease is asked.

use std::collections::BTreeMap;

use bytes::Bytes;
use object_store::path::Path;
use sha2::{Digest, Sha256};
use togi_model::{adapter, memory::trainable};
use togi_proto::events::v1::AdapterPublished;
use togi_runtime::{
    Class, Store,
    card::CARD_FILE,
    layout,
    lease::Lease,
    memory,
    registry::{ADAPTER_MANIFEST_VERSION, AdapterFile, AdapterManifest},
    worker::Claim,
};
use tracing::{Instrument as _, info, info_span};

use crate::{
    card,
    error::{Error, Result},
    log,
    patience::patiently,
    recipe::Promote,
    registry,
    report::{self, Facts},
    run::tell,
    tensorboard,
    train::State,
    worker::{Job, Worker},
};

/// Publishes the adapter of a finished run, promotes it if the recipe says so, and returns its generation.
///
/// # Errors
/// `Aborted` when the job is another worker's meanwhile: nothing was promoted then. The store's.
pub(crate) async fn publish(
    worker: &Worker,
    claim: &Claim,
    job: &Job,
    state: &State,
) -> Result<String> {
    let (store, lease) = (&worker.store, &claim.lease);
    let adapter = Adapter::of(job, state)?;
    let generation = adapter.generation.clone();
    patiently!(lease, check(lease))?;
    let lines = patiently!(lease, log::finish(store, &job.id))?;
    patiently!(lease, adapter.write(store))?;
    let facts = facts(claim, job, state, &adapter);
    let start = claim
        .job
        .create_time
        .as_ref()
        .map_or(0.0, |time| time.seconds as f64);
    let events = format!("events.out.tfevents.{start:.0}.{}", job.id);
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
            tensorboard::events_file(start, &report::timed(&lines)),
        ),
    ];
    for (path, bytes) in papers {
        let bytes = Bytes::from(bytes);
        patiently!(lease, put_first(store, &path, bytes.clone()))?;
    }
    let manifest = layout::adapter_manifest(&generation).to_string();
    info!(job = %job.id, generation, "adapter published");
    let event = AdapterPublished {
        generation: generation.clone(),
        job: job.id.to_string(),
        manifest,
    };
    tell(&worker.bus, event.into()).await;
    if job.recipe.promote == Promote::Auto {
        let alias = &job.request.request.alias;
        let since = claim.job.create_time;
        patiently!(lease, check(lease))?;
        let span = info_span!("promote", alias, generation);
        patiently!(
            lease,
            registry::promote_once(&worker.aliases, alias, &generation, since.as_ref())
                .instrument(span.clone())
        )?;
    }
    Ok(generation)
}

async fn check(lease: &Lease) -> Result<()> {
    Ok(lease.check().await?)
}

/// An adapter's folder, complete.
struct Adapter {
    generation: String,
    files: BTreeMap<&'static str, Bytes>,
    manifest: AdapterManifest,
}

impl Adapter {
    fn of(job: &Job, state: &State) -> Result<Adapter> {
        let (identity, recipe) = (&job.request.identity, &job.recipe);
        let name = &job.base.public_name;
        let files = adapter::to_files(&state.lora, name)?;
        let made_of = adapter::Identity {
            base: identity.base.clone(),
            tokenizer: identity.tokenizer.clone(),
            template: identity.template.clone(),
            dataset: identity.dataset.clone(),
            recipe: identity.recipe.clone(),
            base_representation: identity.base_precision.clone(),
        };
        let generation = adapter::generation(&files, &made_of)?;
        let card = card::card(name, identity, &generation, recipe);
        let files: BTreeMap<&'static str, Bytes> = [
            (adapter::CONFIG_FILE, Bytes::from(files.config)),
            (adapter::TENSORS_FILE, Bytes::from(files.tensors)),
            (CARD_FILE, Bytes::from(card)),
        ]
        .into();
        let manifest = AdapterManifest {
            schema_version: ADAPTER_MANIFEST_VERSION,
            generation: generation.clone(),
            identity: identity.clone(),
            rank: u32::try_from(recipe.lora.rank).unwrap_or(u32::MAX),
            alpha: recipe.lora.alpha,
            target_modules: recipe.target_names(),
            files: files
                .iter()
                .map(|(name, bytes)| ((*name).to_owned(), described(bytes)))
                .collect(),
            job: job.id.to_string(),
            recipe_name: recipe.name.clone(),
        };
        Ok(Adapter {
            generation,
            files,
            manifest,
        })
    }

    async fn write(&self, store: &Store) -> Result<()> {
        for (name, bytes) in &self.files {
            store
                .put_new(&layout::adapter_file(&self.generation, name), bytes.clone())
                .await?;
        }
        let path = layout::adapter_manifest(&self.generation);
        match store.put_new_json(&path, &self.manifest).await {
            Ok(_) => Ok(()),
            // Another job has made the same generation: it keeps its name on it, the rest must agree.
            Err(error) if error.class() == Class::AlreadyExists => {
                let theirs: AdapterManifest = store.get_json(&path).await?;
                let ours = AdapterManifest {
                    job: theirs.job.clone(),
                    recipe_name: theirs.recipe_name.clone(),
                    ..self.manifest.clone()
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

    fn tensors_bytes(&self) -> u64 {
        self.files
            .get(adapter::TENSORS_FILE)
            .map_or(0, |bytes| bytes.len() as u64)
    }
}

fn described(bytes: &[u8]) -> AdapterFile {
    AdapterFile {
        bytes: bytes.len() as u64,
        sha256: hex::encode(Sha256::digest(bytes)),
    }
}

fn facts(claim: &Claim, job: &Job, state: &State, adapter: &Adapter) -> Facts {
    Facts {
        job: job.id.to_string(),
        generation: adapter.generation.clone(),
        rows: job.request.rows,
        samples: state.progress.samples,
        seconds: state.progress.seconds,
        failed_attempts: claim.job.attempts,
        worker: claim.job.worker.clone(),
        peak_memory_bytes: memory::peak_bytes(),
        adapter_bytes: adapter.tensors_bytes(),
        trainable_parameters: trainable(&job.base.config, &job.recipe.lora),
        base_parameters: job.base.config.parameters(),
    }
}

/// Writes a paper with times and figures, which a second attempt would write otherwise: the first one stays.
async fn put_first(store: &Store, path: &Path, bytes: Bytes) -> Result<()> {
    match store.put_new(path, bytes).await {
        Ok(_) => Ok(()),
        Err(error) if error.class() == Class::AlreadyExists => Ok(()),
        Err(error) => Err(error.into()),
    }
}
