//! The handler of preparation jobs: from a claimed job to a committed data set. A repeated job
//! makes the same objects.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tempfile::TempDir;
use togi_common::DatasetId;
use togi_runtime::jobs::Kind;
use togi_runtime::worker::lease::Lease;
use togi_runtime::worker::{Admission, Claim, Handler, Outcome};
use togi_runtime::{Bus, Context};
use togi_tokens::DatasetManifest;
use togi_tokens::tokenizer::Tokenizer;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{Span, info, instrument, warn};

use crate::commit::Commit;
use crate::config::PrepareConfig;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::pipeline::{self, Plan, Prepared};
use crate::progress::Progress;
use crate::request::{Request, Resolver};
use crate::rpc::conversion::request_from_json;
use crate::shards;
use crate::source::{Located, Reading};

/// How often progress is published.
const PROGRESS_PERIOD: Duration = Duration::from_millis(500);

/// Prepares data sets.
pub struct Preparer {
    context: Context,
    resolver: Resolver,
    config: PrepareConfig,
    metrics: Metrics,
}

/// The inputs of a preparation whose request is resolved.
struct Work {
    request: Request,
    located: Located,
    tokenizer: Arc<Tokenizer>,
    workers: usize,
    scratch: TempDir,
    progress: Arc<Progress>,
}

impl Preparer {
    /// Prepares with a process's bus and store.
    pub fn new(
        context: &Context,
        resolver: Resolver,
        config: PrepareConfig,
        metrics: Metrics,
    ) -> Self {
        Self {
            context: context.clone(),
            resolver,
            config,
            metrics,
        }
    }

    /// Prepares a data set and returns its id.
    async fn prepare(&self, claim: &Claim, stop: &CancellationToken) -> Result<DatasetId> {
        let work = stop
            .run_until_cancelled(self.resolve(&claim.request))
            .await
            .ok_or(Error::Stopped)??;
        let work = Arc::new(work);
        let prepared = {
            let reading = self.read(work.clone(), stop);
            tokio::pin!(reading);
            let publishing = publish_progress(&self.context.bus, &claim.lease, &work.progress);
            tokio::select! {
                prepared = &mut reading => prepared?,
                () = publishing => reading.await?,
            }
        };
        let (read, rejected) = (prepared.read, prepared.rejected);
        let read_as = prepared.read_as.clone();
        let dataset = self.finish(claim, work, prepared, stop).await?;
        info!(
            job = %claim.job.id,
            %dataset,
            read,
            rejected,
            read_as,
            "data set ready"
        );
        Ok(dataset)
    }

    async fn resolve(&self, request: &[u8]) -> Result<Work> {
        let request = request_from_json(request)?;
        let (located, tokenizer) = self.resolver.resolve(&request).await?;
        let scratch = self.config.scratch();
        let scratch = spawn_blocking(move || {
            std::fs::create_dir_all(&scratch)
                .and_then(|()| TempDir::with_prefix_in("togi-prepare-", &scratch))
        })
        .await
        .map_err(|_| Error::Panicked { thread: "scratch" })?
        .map_err(Error::Scratch)?;
        if !located.reading.is_empty() {
            info!(
                dataset = request.name,
                reading = located.reading,
                "source found"
            );
        }
        Ok(Work {
            workers: request.workers.unwrap_or_else(|| self.config.workers()),
            progress: Arc::new(Progress::new(located.bytes, &located.reading)),
            scratch,
            request,
            located,
            tokenizer,
        })
    }

    #[instrument(name = "tokenize_records", skip_all)]
    async fn read(&self, work: Arc<Work>, stop: &CancellationToken) -> Result<Prepared> {
        let max_bytes = self.config.max_source_bytes;
        let reading = Reading {
            handle: Handle::current(),
            stop: stop.clone(),
            progress: work.progress.clone(),
            metrics: self.metrics.clone(),
        };
        let prepared = on_thread(move || {
            let request = &work.request;
            let plan = Plan {
                tokenizer: work.tokenizer.clone(),
                settings: request.settings.clone(),
                format: request.format,
                shape: request.shape.clone(),
                on_bad_record: request.on_bad_record,
                workers: work.workers,
                max_bytes,
                scratch: work.scratch.path(),
                stop: &reading.stop,
                progress: &work.progress,
                metrics: &reading.metrics,
            };
            pipeline::prepare(&plan, work.located.open(reading.clone()))
        });
        prepared.await
    }

    /// Writes the objects that the store lacks, in an order that readers can rely on.
    #[instrument(name = "commit_dataset", skip_all, fields(dataset = %prepared.dataset))]
    async fn finish(
        &self,
        claim: &Claim,
        work: Arc<Work>,
        prepared: Prepared,
        stop: &CancellationToken,
    ) -> Result<DatasetId> {
        let commit = Commit {
            context: &self.context,
            job: &claim.job,
            lease: &claim.lease,
            stop,
        };
        let dataset = prepared.dataset;
        let read_as = prepared.read_as.clone();
        let manifest = match commit.committed(dataset).await? {
            Some(manifest) => manifest,
            None => {
                let prepared = Arc::new(prepared);
                let manifest = self
                    .write_shards(work.clone(), prepared.clone(), stop)
                    .await?;
                let rejects = prepared.rejects.file.path();
                commit
                    .dataset(&manifest, work.scratch.path(), rejects)
                    .await?;
                manifest
            }
        };
        let last = work.progress.snapshot();
        if let Err(error) = self.context.bus.put_progress(claim.id(), &last).await {
            warn!(error = error.chain(), "progress not published");
        }
        commit.name(&work.request.name, &read_as, &manifest).await?;
        Ok(dataset)
    }

    async fn write_shards(
        &self,
        work: Arc<Work>,
        prepared: Arc<Prepared>,
        stop: &CancellationToken,
    ) -> Result<DatasetManifest> {
        let stop = stop.clone();
        on_thread(move || {
            let form = shards::Form {
                tokenizer_digest: work.tokenizer.digest(),
                settings: &work.request.settings,
                workers: work.workers,
                folder: work.scratch.path(),
                stop: &stop,
            };
            shards::write(&form, &prepared)
        })
        .await
    }
}

#[async_trait]
impl Handler for Preparer {
    const KIND: Kind = Kind::Prepare;

    async fn handle(&self, claim: Claim) -> Outcome {
        let stop = CancellationToken::new();
        // If this future is dropped, its threads end too.
        let _guard = stop.clone().drop_guard();
        let work = self.prepare(&claim, &stop);
        tokio::pin!(work);
        let interrupted = tokio::select! {
            done = &mut work => {
                return match done {
                    Ok(dataset) => Outcome::Succeeded { result: dataset.into() },
                    Err(error) => togi_runtime::Error::from(error).into(),
                };
            }
            () = claim.lease.lost() => Outcome::LeaseLost,
            () = claim.lease.cancelled() => Outcome::Cancelled,
            () = claim.stopper.stopped() => Outcome::HandBack,
        };
        stop.cancel();
        match work.await {
            // It was committed before the stop.
            Ok(dataset) if claim.lease.is_held() => Outcome::Succeeded {
                result: dataset.into(),
            },
            _ => interrupted,
        }
    }

    async fn admit(&self, request: Bytes) -> togi_runtime::Result<Admission> {
        let admission = Admission::from_json(&request)?;
        self.resolver.check(&request_from_json(&request)?).await?;
        Ok(admission)
    }
}

/// Publishes progress until it is dropped. An error never fails the job, because the next message
/// replaces this one.
async fn publish_progress(bus: &Bus, lease: &Lease, progress: &Progress) {
    let mut ticks = tokio::time::interval(PROGRESS_PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = bus.put_progress(lease.job(), &progress.snapshot()).await {
            warn!(error = error.chain(), "progress not published");
        }
    }
}

/// Runs CPU work on a thread, in the span of the caller.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let span = Span::current();
    let done = spawn_blocking(move || span.in_scope(work)).await;
    done.map_err(|_| Error::Panicked {
        thread: "preparing",
    })?
}
