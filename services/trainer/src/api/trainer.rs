//! TrainerService over the queue, the jobs' records and their logs.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use togi_proto::trainer::v1::trainer_service_server::{TrainerService, TrainerServiceServer};
use togi_proto::trainer::v1::watch_job_response as watch_job;
use togi_proto::trainer::v1::{
    CancelJobRequest, CancelJobResponse, CreateJobRequest, CreateJobResponse, GetJobRequest,
    GetJobResponse, ListJobsRequest, ListJobsResponse, WatchJobRequest, WatchJobResponse,
};
use togi_runtime::jobs::{Job, Kind};
use togi_runtime::life::deadline::bounded;
use togi_runtime::{Class, Error, JobId, Stopper, Store};
use tonic::{Request, Response, Status, async_trait};

use crate::page::page;
use crate::queue::{Mode, Queue};
use crate::request::Asked;
use crate::run::evaluation;
use crate::watch::{Update, Watcher};

/// The outcome of a question that is not answered in time.
const NOT_KNOWN: &str = "ask again";

fn is_absence(class: Class) -> bool {
    matches!(class, Class::Unavailable | Class::DeadlineExceeded)
}

/// Answers TrainerService.
pub(crate) struct TrainerApi {
    /// The object store.
    pub store: Store,
    /// Where jobs are accepted.
    pub queue: Queue,
    /// Ends watches.
    pub stopper: Stopper,
    /// Time between two looks of a watch.
    pub poll: Duration,
}

impl TrainerApi {
    /// Returns the gRPC service.
    pub(crate) fn service(self) -> TrainerServiceServer<Self> {
        TrainerServiceServer::new(self)
    }

    /// Jobs of other kinds are not ours to show.
    async fn job(&self, id: &str) -> Result<(JobId, Job), Error> {
        let job = bounded(NOT_KNOWN, self.queue.jobs().named(id)).await?;
        if job.kind == Kind::Train {
            return Ok((job.id.clone(), job));
        }
        Err(Error::not_found(format!("there is no training job \"{id}\"")).with_field("job"))
    }
}

#[async_trait]
impl TrainerService for TrainerApi {
    async fn create_job(
        &self,
        request: Request<CreateJobRequest>,
    ) -> Result<Response<CreateJobResponse>, Status> {
        let request = request.into_inner();
        let mode = if request.validate_only {
            Mode::Validate
        } else {
            Mode::Submit
        };
        let asked = Asked::try_from(request)?.or_random_key()?;
        let accepted = self.queue.create(&asked, mode).await?;
        Ok(Response::new(CreateJobResponse {
            job: accepted.job.map(Into::into),
            plan: accepted.plan.as_ref().map(Into::into),
            steps: accepted.steps,
        }))
    }

    async fn get_job(
        &self,
        request: Request<GetJobRequest>,
    ) -> Result<Response<GetJobResponse>, Status> {
        let (id, job) = self.job(&request.into_inner().job).await?;
        let parts = async {
            let asked = self.queue.request(&id).await?.request;
            let evaluation = evaluation::find(&self.store, &id).await?;
            Ok::<_, crate::error::Error>((Some(asked), evaluation))
        };
        let (asked, evaluation) = match bounded(NOT_KNOWN, parts).await {
            // The record is known all the same.
            Err(error) if is_absence(error.class()) => (None, None),
            parts => parts?,
        };
        Ok(Response::new(GetJobResponse {
            job: Some(job.into()),
            request: asked.as_ref().map(Into::into),
            evaluation: evaluation.as_ref().map(Into::into),
        }))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let ListJobsRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let jobs = bounded(NOT_KNOWN, self.queue.jobs().list(Kind::Train)).await?;
        let (jobs, next_page_token) = page(jobs, |job| job.id.to_string(), page_size, &page_token)?;
        Ok(Response::new(ListJobsResponse {
            jobs: jobs.into_iter().map(Into::into).collect(),
            next_page_token,
        }))
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        let (id, _) = self.job(&request.into_inner().job).await?;
        let outcome = "whether the job ends is not known; the same call again is safe";
        let job = bounded(outcome, self.queue.jobs().cancel(&id)).await?;
        Ok(Response::new(CancelJobResponse {
            job: Some(job.into()),
        }))
    }

    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<WatchJobResponse, Status>> + Send>>;

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let WatchJobRequest { job, from_step } = request.into_inner();
        let (id, _) = self.job(&job).await?;
        let watcher = Watcher {
            store: self.store.clone(),
            jobs: self.queue.jobs().clone(),
            stopper: self.stopper.clone(),
            poll: self.poll,
        };
        let updates = watcher.watch(id, from_step).map(|update| {
            let update = match update? {
                Update::Step(step) => watch_job::Update::Step((&step).into()),
                Update::Job(job) => watch_job::Update::Job(job.into()),
            };
            Ok(WatchJobResponse {
                update: Some(update),
            })
        });
        Ok(Response::new(Box::pin(updates)))
    }
}
