//! Connections to the services, and the calls that several commands share.

use std::time::Duration;

use togi_proto::dataprep::v1::GetPreparationRequest;
use togi_proto::dataprep::v1::data_prep_service_client::DataPrepServiceClient;
use togi_proto::inference::v1::inference_service_client::InferenceServiceClient;
use togi_proto::job::v1::{Job, JobState};
use togi_proto::trainer::v1::GetJobRequest;
use togi_proto::trainer::v1::adapter_service_client::AdapterServiceClient;
use togi_proto::trainer::v1::policy_service_client::PolicyServiceClient;
use togi_proto::trainer::v1::trainer_service_client::TrainerServiceClient;
use togi_runtime::jobs::State;
use togi_runtime::rpc::client::{Client, Inject};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;

use crate::error::{Error, Result};
use crate::settings::Settings;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The time between keep-alive pings: a stream may be silent for a long time.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// The name of the gRPC code of a refusal.
const REFUSED: &str = "FAILED_PRECONDITION";
/// Entries in a page of a list.
pub const PAGE_SIZE: i32 = 200;

/// Opens connections as commands need them.
#[derive(Clone, Debug)]
pub struct Clients {
    data_prep: String,
    trainer: String,
    inference: String,
}

impl Clients {
    /// Takes the addresses; opens no connection yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            data_prep: settings.data_prep.clone(),
            trainer: settings.trainer.clone(),
            inference: settings.inference.clone(),
        }
    }

    /// Takes one address for all services.
    pub fn at(endpoint: &str) -> Self {
        Self {
            data_prep: endpoint.into(),
            trainer: endpoint.into(),
            inference: endpoint.into(),
        }
    }

    /// Connects to data-prep.
    ///
    /// # Errors
    /// [`Error::Usage`] for a malformed address, [`Error::NoAnswer`] if nothing answers. The other
    /// connections fail in the same way.
    pub async fn data_prep(&self) -> Result<DataPrepServiceClient<Client>> {
        Ok(DataPrepServiceClient::new(connect(&self.data_prep).await?))
    }

    /// Connects to the trainer's jobs.
    pub async fn trainer(&self) -> Result<TrainerServiceClient<Client>> {
        Ok(TrainerServiceClient::new(connect(&self.trainer).await?))
    }

    /// Connects to the registry of adapters.
    pub async fn adapters(&self) -> Result<AdapterServiceClient<Client>> {
        Ok(AdapterServiceClient::new(connect(&self.trainer).await?))
    }

    /// Connects to the policies.
    pub async fn policies(&self) -> Result<PolicyServiceClient<Client>> {
        Ok(PolicyServiceClient::new(connect(&self.trainer).await?))
    }

    /// Connects to inference.
    pub async fn inference(&self) -> Result<InferenceServiceClient<Client>> {
        Ok(InferenceServiceClient::new(connect(&self.inference).await?))
    }

    /// Returns a job of either kind.
    pub async fn job(&self, id: &str) -> Result<Job> {
        let request = GetJobRequest { job: id.to_owned() };
        let answer = self
            .trainer()
            .await?
            .get_job(request)
            .await
            .map(|answer| answer.into_inner().job);
        let job = match answer.map_err(Error::from) {
            Err(error) if error.is_not_found() => {
                let request = GetPreparationRequest { job: id.to_owned() };
                self.data_prep()
                    .await?
                    .get_preparation(request)
                    .await?
                    .into_inner()
                    .job
            }
            answer => answer?,
        };
        present(job, "job")
    }
}

/// Connects at once, so that a missing service is reported immediately; requests carry the trace
/// context.
async fn connect(endpoint: &str) -> Result<Client> {
    let target = Endpoint::from_shared(endpoint.to_owned())
        .ok()
        .filter(|target| target.uri().scheme().is_some() && target.uri().authority().is_some())
        .ok_or_else(|| {
            Error::Usage(format!(
                "{endpoint:?} is no address; one looks like http://127.0.0.1:7670"
            ))
        })?;
    let channel = target
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .connect()
        .await
        .map_err(|source| Error::NoAnswer {
            endpoint: endpoint.to_owned(),
            source,
        })?;
    Ok(InterceptedService::new(channel, Inject))
}

/// Returns a field that a service always sets.
pub fn present<T>(part: Option<T>, name: &'static str) -> Result<T> {
    part.ok_or_else(|| Error::Service {
        code: tonic::Code::Internal,
        message: format!("the service's answer has no {name}; is it of another version?"),
        field: String::new(),
    })
}

/// Whether a job's state is final.
pub fn is_final(job: &Job) -> bool {
    State::from_proto(job.state()).is_some_and(State::is_final)
}

/// Returns the job if it succeeded and the gate did not refuse its adapter.
///
/// # Errors
/// [`Error::Job`] with the reason otherwise.
pub fn succeeded(job: Job) -> Result<Job> {
    match job.state() {
        JobState::Succeeded if !job.refusal.is_empty() => Err(Error::Job {
            job: job.id,
            state: "ended without a promotion",
            code: REFUSED.to_owned(),
            reason: Some(format!(
                "the gate refused generation {}: {}",
                job.result, job.refusal
            )),
        }),
        JobState::Failed => {
            let error = job.error.unwrap_or_default();
            let field = if error.field.is_empty() {
                String::new()
            } else {
                format!("{}: ", error.field)
            };
            let reason = Some(format!("{field}{}", error.message));
            Err(Error::Job {
                job: job.id,
                state: "failed",
                code: error.code,
                reason,
            })
        }
        JobState::Cancelled => Err(Error::Job {
            job: job.id,
            state: "was cancelled",
            code: String::new(),
            reason: job.error.map(|error| error.message),
        }),
        _ => Ok(job),
    }
}
