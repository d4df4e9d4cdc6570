//! A worker's part: it trains a claimed job and publishes the adapter. Every step can be repeated.

use async_trait::async_trait;
use bytes::Bytes;
use object_store::path::Path;
use togi_common::Generation;
use togi_model::optim;
use togi_runtime::jobs::Kind;
use togi_runtime::worker::{Admission as Admitted, Claim, Handler, Outcome};
use togi_tokens::Split;
use tracing::{Instrument as _, info, info_span};

use crate::error::{Error, Result};
use crate::learn::data::Order;
use crate::learn::snapshot::Snapshot;
use crate::learn::train::{Plan, State};
use crate::patience::retry;
use crate::policies::policy;
use crate::policies::retraining::Retraining;
use crate::recipe::Promote;
use crate::request::{Asked, JobRequest};
use crate::run::checkpoint::{self, Owner};
use crate::run::evaluation::Candidate;
use crate::run::job::Job;
use crate::run::parts::Parts;
use crate::run::publish::{self, Published};
use crate::run::training::{self, End, Run};
use crate::submission::Admission;

/// The part that a job waits for while its base cannot be read.
const BASE: &str = "the base";

/// Works on training jobs, one at a time.
#[derive(Clone)]
pub(crate) struct Worker {
    /// The connections and settings.
    pub parts: Parts,
    /// Checks requests that arrive over the bus.
    pub admission: Admission,
    /// Decides whether a policy's job is still needed.
    pub retraining: Retraining,
}

#[async_trait]
impl Handler for Worker {
    const KIND: Kind = Kind::Train;

    async fn handle(&self, claim: Claim) -> Outcome {
        let running = self.parts.metrics.running();
        let outcome = match self.work(&claim).await {
            Ok(Ended::Published(generation)) => Outcome::Succeeded {
                result: generation.to_string(),
            },
            Ok(Ended::Refused(generation, reason)) => Outcome::Refused {
                result: generation.to_string(),
                reason,
            },
            Ok(Ended::Stopped) => Outcome::HandBack,
            Ok(Ended::Cancelled) => Outcome::Cancelled,
            Ok(Ended::Lost) => Outcome::LeaseLost,
            Err(error @ Error::Overtaken { .. }) => Outcome::Withdrawn(error.into()),
            Err(error) => {
                self.parts.bases.release_engine().await;
                Outcome::Failed(error.into())
            }
        };
        drop(running);
        outcome
    }

    /// Checks and pins a request from the bus, as the service does for one over gRPC.
    async fn admit(&self, request: Bytes) -> togi_runtime::Result<Admitted> {
        let asked = Asked::from_json(&request)?;
        let resolved = policy::resolve(&self.parts.store, &asked).await?;
        let checked = self.admission.check(&resolved).await?;
        Ok(Admitted {
            idempotency_key: asked.idempotency_key().to_owned(),
            request: serde_json::to_value(&checked.request)?,
        })
    }
}

enum Ended {
    Published(Generation),
    /// Published but not promoted, for this reason.
    Refused(Generation, String),
    Stopped,
    Cancelled,
    Lost,
}

impl Worker {
    async fn work(&self, claim: &Claim) -> Result<Ended> {
        let lease = &claim.lease;
        let prepared = async {
            let job = retry!(lease, BASE, self.job(claim))?;
            let store = &self.parts.store;
            let checkpoint = retry!(lease, checkpoint::newest(store, &job.owner))?;
            if checkpoint.is_none() {
                retry!(lease, self.check_needed(&job))?;
            }
            let start = retry!(lease, BASE, self.start(&job, &checkpoint))?;
            Ok::<_, Error>((job, start))
        };
        // Loading a base may take minutes. A stop, a cancellation or a lost lease must end it.
        let (job, start) = tokio::select! {
            biased;
            () = lease.lost() => return Ok(Ended::Lost),
            () = lease.cancelled() => return Ok(Ended::Cancelled),
            () = claim.stopper.stopped() => return Ok(Ended::Stopped),
            prepared = prepared.instrument(info_span!("prepare run")) => prepared?,
        };
        let span = info_span!("train", job = %job.id, steps = job.request.steps, from_step = start.state.progress.step);
        let mut run = Run::new(&self.parts, claim, &job, start)?;
        let (end, state) = run.drive(lease, &claim.stopper).instrument(span).await?;
        match end {
            End::Done => {}
            End::Stopped => return Ok(Ended::Stopped),
            End::Cancelled => return Ok(Ended::Cancelled),
            End::Lost => return Ok(Ended::Lost),
        }
        match self.finish(claim, &job, &state).await {
            Ok(ended) => Ok(ended),
            // After a lost lease the new worker publishes the adapter.
            Err(_) if !lease.is_held() => Ok(Ended::Lost),
            Err(_) if lease.is_cancelled() => Ok(Ended::Cancelled),
            Err(error) => Err(error),
        }
    }

    /// Publishes the adapter, has it evaluated and promotes it. It can be repeated after an
    /// interruption at any point.
    async fn finish(&self, claim: &Claim, job: &Job, state: &State) -> Result<Ended> {
        let lease = &claim.lease;
        let span = info_span!("publish", job = %job.id);
        let published = publish::publish(&self.parts, claim, job, state);
        let Published {
            generation,
            divergence,
        } = published.instrument(span).await?;
        if let Some(reason) = divergence {
            return Ok(Ended::Refused(generation, reason));
        }
        let mut evaluated = None;
        if let Some(gate) = &job.request.request.gate {
            let span = info_span!("evaluate", job = %job.id, %generation);
            let candidate = Candidate {
                parts: &self.parts,
                claim,
                job,
                gate,
                lora: &state.lora,
                generation,
            };
            let verdict = match candidate.evaluate().instrument(span).await {
                Err(_) if claim.stopper.is_stopped() => return Ok(Ended::Stopped),
                Err(_) if lease.is_cancelled() => return Ok(Ended::Cancelled),
                evaluated => evaluated?,
            };
            if !verdict.passed {
                return Ok(Ended::Refused(generation, verdict.reason));
            }
            evaluated = Some(verdict);
        }
        // The adapter stays published and can be promoted by hand.
        if lease.is_cancelled() {
            return Ok(Ended::Cancelled);
        }
        if job.recipe.promote == Promote::Auto
            && let Some(other) =
                publish::promote(&self.parts, claim, job, generation, evaluated.as_ref()).await?
        {
            let reason = format!(
                "{:?} has come to name {} while the adapter was measured beside what it named before; `togi adapters promote` decides \
                 by hand",
                other.name().as_str(),
                other.generation()
            );
            return Ok(Ended::Refused(generation, reason));
        }
        Ok(Ended::Published(generation))
    }

    /// Fails if a newer revision has made a policy's job unnecessary. Must only be asked about a
    /// job that has not begun.
    async fn check_needed(&self, job: &Job) -> Result<()> {
        let Some(origin) = &job.request.origin else {
            return Ok(());
        };
        let now = jiff::Timestamp::now();
        match self.retraining.overtaken(origin, now).await? {
            Some(revision) => Err(Error::Overtaken { revision }),
            None => Ok(()),
        }
    }

    async fn job(&self, claim: &Claim) -> Result<Job> {
        let id = claim.id().clone();
        let request = JobRequest::from_json(&claim.request)?;
        let recipe = request.request.recipe.clone();
        let name = &request.request.base;
        let base = self.parts.bases.info(name, recipe.precision).await?;
        if base.digest != request.identity.base
            || base.tokenizer_digest != request.identity.tokenizer
        {
            return Err(other_base());
        }
        let owner = Owner {
            job: id.clone(),
            identity: request.identity.clone(),
            seed: recipe.seed,
        };
        Ok(Job {
            id,
            request,
            recipe,
            base,
            owner,
        })
    }

    /// Returns where the job starts: at its newest intact checkpoint, or at the beginning.
    async fn start(&self, job: &Job, kept: &Option<(Path, Snapshot)>) -> Result<training::Start> {
        let recipe = &job.recipe;
        let name = &job.request.request.base;
        let engine = self.parts.bases.engine(name, recipe.precision).await?;
        if engine.base().digest() != job.request.identity.base {
            return Err(other_base());
        }
        let mut state = State::fresh(&job.base.config, recipe)?;
        let mut checkpoint = None;
        if let Some((manifest, snapshot)) = kept {
            info!(job = %job.id, step = snapshot.progress.step, %manifest, "going on from a checkpoint");
            state.lora.set_bytes(&snapshot.lora)?;
            state.optimizer = optim::AdamW::from_bytes(&snapshot.optimizer, recipe.optimizer())?;
            state.progress = snapshot.progress.clone();
            checkpoint = Some(manifest.to_string());
        }
        Ok(training::Start {
            engine,
            state,
            plan: Plan {
                recipe: recipe.clone(),
                rows: job.request.rows,
                steps: job.request.steps,
            },
            order: Order {
                dataset: job.request.identity.dataset.into(),
                split: Split::Train,
                rows: job.request.rows,
                seed: recipe.seed,
                shuffle: recipe.shuffle,
                epochs: u64::from(recipe.epochs),
            },
            checkpoint,
        })
    }
}

fn other_base() -> Error {
    let reason = "has other weights or another tokenizer now than when the job was accepted";
    Error::unfit("base", reason)
}
