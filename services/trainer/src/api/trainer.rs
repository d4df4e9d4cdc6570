//! TrainerService over the queue, the jobs' records and their logs.

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use togi_proto::trainer::v1::trainer_service_server::TrainerService;
use togi_proto::trainer::v1::{
    CancelJobRequest, CancelJobResponse, CreateJobRequest, CreateJobResponse, GetJobRequest,
    GetJobResponse, ListJobsRequest, ListJobsResponse, WatchJobRequest, WatchJobResponse,
};
use togi_runtime::jobs::{Job, Kind};
use togi_runtime::{Error, JobId, Stopper, Store, layout};
use tonic::{Request, Response, Status, async_trait};

use crate::page::page;
use crate::queue::Queue;
use crate::run::evaluation;
use crate::watch::Watcher;

/// Answers TrainerService.
pub struct TrainerApi {
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
    /// Jobs of other kinds are not ours to show.
    async fn job(&self, id: &str) -> Result<(JobId, Job), Error> {
        let id = layout::parse("job", id)?;
        let job = self.queue.jobs().get(&id).await?;
        if job.kind == Kind::Train {
            return Ok((id, job));
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
        let accepted = self.queue.create(&request.into_inner()).await?;
        Ok(Response::new(CreateJobResponse {
            job: accepted.job.map(Into::into),
            plan: accepted.plan,
            steps: accepted.steps,
        }))
    }

    async fn get_job(
        &self,
        request: Request<GetJobRequest>,
    ) -> Result<Response<GetJobResponse>, Status> {
        let (id, job) = self.job(&request.into_inner().job).await?;
        let asked = self.queue.request(&id).await?.request;
        let evaluation = evaluation::find(&self.store, &id).await?;
        Ok(Response::new(GetJobResponse {
            job: Some(job.into()),
            request: Some(asked),
            evaluation,
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
        let jobs = self.queue.jobs().list(Kind::Train).await?;
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
        let job = self.queue.jobs().cancel(&id).await?;
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
        Ok(Response::new(Box::pin(watcher.watch(id, from_step))))
    }
}
