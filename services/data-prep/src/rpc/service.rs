//! `DataPrepService`: uploads, preparations and data sets.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use togi_proto::dataprep::v1 as proto;
use togi_proto::dataprep::v1::data_prep_service_server::{DataPrepService, DataPrepServiceServer};
use togi_runtime::jobs::{Job, Kind, job_id, random_key, unclear};
use togi_runtime::life::deadline::bounded;
use togi_runtime::{Class, Context, Error, Fence, JobId, Jobs, Result, rpc};
use tokio::sync::Semaphore;
use tokio::time::{Interval, MissedTickBehavior};
use tonic::{Request, Response, Status, Streaming};

use crate::catalog::{Asked, Catalog};
use crate::config::PrepareConfig;
use crate::progress::Snapshot;
use crate::request::Resolver;
use crate::upload::{self, Uploaded};

/// The outcome of a question that is not answered in time.
const NOT_KNOWN: &str = "ask again";
/// Uploads at the same time.
const MAX_UPLOADS: usize = 32;
/// The period in which a watcher reads the progress.
const WATCH_PERIOD: Duration = Duration::from_millis(300);

/// The service.
#[derive(Clone)]
pub struct Service {
    context: Context,
    jobs: Jobs,
    catalog: Catalog,
    resolver: Resolver,
    config: PrepareConfig,
    uploads: Arc<Semaphore>,
}

impl Service {
    /// Serves with a process's bus and store.
    pub fn new(context: &Context, resolver: Resolver, config: PrepareConfig) -> Self {
        Self {
            jobs: Jobs::new(&context.bus, &context.store),
            catalog: Catalog::new(context.store.clone()),
            uploads: Arc::new(Semaphore::new(MAX_UPLOADS)),
            context: context.clone(),
            resolver,
            config,
        }
    }

    /// Returns the gRPC server of this service.
    pub(crate) fn into_server(self) -> DataPrepServiceServer<Self> {
        DataPrepServiceServer::new(self)
    }

    /// Returns a preparation. A job of another kind is not found.
    async fn preparation(&self, id: &str) -> Result<(JobId, Job)> {
        let job = bounded(NOT_KNOWN, self.jobs.named(id)).await?;
        if job.kind != Kind::Prepare {
            return Err(
                Error::not_found(format!("there is no preparation \"{id}\"")).with_field("job"),
            );
        }
        Ok((job.id.clone(), job))
    }

    async fn follow(
        &self,
        id: JobId,
    ) -> Result<BoxStream<'static, Answer<proto::WatchPreparationResponse>>> {
        let changes = self.jobs.watch(&id).await?;
        let mut ticks = tokio::time::interval(WATCH_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watch = Watch {
            context: self.context.clone(),
            id,
            changes,
            ticks,
            job: None,
            sent: Snapshot::default(),
        };
        Ok(futures::stream::unfold(watch, Watch::next).boxed())
    }
}

/// A watcher's stream: the changes of the job's record, and the progress.
struct Watch {
    context: Context,
    id: JobId,
    changes: Pin<Box<dyn Stream<Item = Job> + Send>>,
    ticks: Interval,
    job: Option<Job>,
    /// The progress in the last update.
    sent: Snapshot,
}

impl Watch {
    async fn next(mut self) -> Option<(Answer<proto::WatchPreparationResponse>, Self)> {
        loop {
            tokio::select! {
                change = self.changes.next() => {
                    self.job = Some(change?);
                    self.sent = self.progress().await;
                }
                _ = self.ticks.tick(), if self.job.is_some() => {
                    let news = self.progress().await;
                    if news == self.sent {
                        continue;
                    }
                    self.sent = news;
                }
            }
            let update = proto::WatchPreparationResponse {
                job: self.job.clone().map(Into::into),
                records_read: self.sent.records,
                bytes_read: self.sent.bytes,
                bytes_total: self.sent.bytes_total,
                reading: self.sent.reading.clone(),
            };
            return Some((Ok(update), self));
        }
    }

    /// Returns the newest progress, or the one that was sent last if it cannot be read.
    async fn progress(&mut self) -> Snapshot {
        let queued = self
            .job
            .as_ref()
            .is_none_or(|job| !job.state.is_final() && job.fence == Fence::default());
        if queued {
            return self.sent.clone();
        }
        let body = self.context.bus.progress(&self.id).await.ok().flatten();
        body.and_then(|body| serde_json::from_slice(&body).ok())
            .unwrap_or_else(|| self.sent.clone())
    }
}

type Answer<T> = std::result::Result<T, Status>;

#[tonic::async_trait]
impl DataPrepService for Service {
    type WatchPreparationStream = BoxStream<'static, Answer<proto::WatchPreparationResponse>>;

    async fn upload(
        &self,
        request: Request<Streaming<proto::UploadRequest>>,
    ) -> Answer<Response<proto::UploadResponse>> {
        let _permit = self.uploads.try_acquire().map_err(|_| {
            Error::new(
                Class::ResourceExhausted,
                "too many uploads at the same time; try again later",
            )
        })?;
        let chunks = request
            .into_inner()
            .map(|message| Ok(message.map_err(Error::from)?.chunk.into()));
        let (scratch, limit) = (self.config.scratch(), self.config.max_upload_bytes);
        let Uploaded { id, bytes } =
            upload::take(&self.context.store, chunks, scratch, limit).await?;
        tracing::info!(upload = id, bytes, "upload stored");
        Ok(Response::new(proto::UploadResponse {
            upload: id,
            size_bytes: bytes,
        }))
    }

    async fn prepare(
        &self,
        request: Request<proto::PrepareRequest>,
    ) -> Answer<Response<proto::PrepareResponse>> {
        let mut request = request.into_inner();
        if request.idempotency_key.is_empty() {
            request.idempotency_key = random_key()?;
        }
        let key = &request.idempotency_key;
        let id = job_id(Kind::Prepare, key)?;
        let unclear = |error| unclear(error, &id, key);
        // A repeated request is not checked again: its records may have been deleted since.
        let accepted = self.jobs.accepted(Kind::Prepare, &id, &request);
        if let Some(job) = accepted.await? {
            return Ok(Response::new(proto::PrepareResponse {
                job: Some(job.into()),
            }));
        }
        let asked = request.clone().try_into()?;
        let checking = self.resolver.check(&asked);
        bounded("nothing was queued", checking).await?;
        let submitted = self.jobs.submit(Kind::Prepare, &id, &request).await;
        let job = submitted.map_err(unclear)?;
        tracing::info!(job = %job.id, name = request.name, "preparation accepted");
        Ok(Response::new(proto::PrepareResponse {
            job: Some(job.into()),
        }))
    }

    async fn get_preparation(
        &self,
        request: Request<proto::GetPreparationRequest>,
    ) -> Answer<Response<proto::GetPreparationResponse>> {
        let (_, job) = self.preparation(&request.get_ref().job).await?;
        Ok(Response::new(proto::GetPreparationResponse {
            job: Some(job.into()),
        }))
    }

    async fn watch_preparation(
        &self,
        request: Request<proto::WatchPreparationRequest>,
    ) -> Answer<Response<Self::WatchPreparationStream>> {
        let (id, _) = self.preparation(&request.get_ref().job).await?;
        Ok(Response::new(self.follow(id).await?))
    }

    async fn cancel_preparation(
        &self,
        request: Request<proto::CancelPreparationRequest>,
    ) -> Answer<Response<proto::CancelPreparationResponse>> {
        let (id, _) = self.preparation(&request.get_ref().job).await?;
        let outcome = "whether the job ends is not known; the same call again is safe";
        let job = bounded(outcome, self.jobs.cancel(&id)).await?;
        Ok(Response::new(proto::CancelPreparationResponse {
            job: Some(job.into()),
        }))
    }

    async fn get_dataset(
        &self,
        request: Request<proto::GetDatasetRequest>,
    ) -> Answer<Response<proto::GetDatasetResponse>> {
        let asked = Asked::from_text(&request.get_ref().dataset)?;
        let dataset = bounded(NOT_KNOWN, self.catalog.get(&asked)).await?;
        Ok(Response::new(proto::GetDatasetResponse {
            dataset: Some(dataset.into()),
        }))
    }

    async fn list_datasets(
        &self,
        request: Request<proto::ListDatasetsRequest>,
    ) -> Answer<Response<proto::ListDatasetsResponse>> {
        let proto::ListDatasetsRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let most = rpc::page::size(page_size)?;
        let after = after(&page_token)?;
        let (page, more) = bounded(NOT_KNOWN, self.catalog.page(&after, most)).await?;
        let next = page.last().filter(|_| more).map(|last| token(&last.name));
        Ok(Response::new(proto::ListDatasetsResponse {
            datasets: page.into_iter().map(proto::Dataset::from).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }
}

/// A page's token: its last name, encoded so that clients treat it as opaque.
fn token(last: &str) -> String {
    hex::encode(format!("after:{last}"))
}

fn after(token: &str) -> Result<String> {
    if token.is_empty() {
        return Ok(String::new());
    }
    let text = hex::decode(token)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let name = text.as_deref().and_then(|text| text.strip_prefix("after:"));
    let name = name.ok_or_else(|| {
        Error::invalid(
            "page_token",
            "page_token must be the last answer's next_page_token",
        )
    })?;
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() {
        assert_eq!(after(&token("dolly")).unwrap(), "dolly");
        assert_eq!(after("").unwrap(), "");
        for bad in ["dolly", "zz", "6162"] {
            assert_eq!(after(bad).unwrap_err().field(), Some("page_token"));
        }
    }
}
