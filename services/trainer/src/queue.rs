//! From a request to a queued job: checked, stored, then announced.

use togi_proto::trainer::v1 as proto;
use togi_runtime::jobs::{Job, Kind, job_id};
use togi_runtime::{Class, JobId, Jobs};
use tracing::info;

use crate::error::{Error, Result};
use crate::policies::policy;
use crate::request::{self, JobRequest};
use crate::submission::{Admission, Checked};

/// An accepted request.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The job; none if the caller only wanted to know.
    pub job: Option<Job>,
    /// Its memory; none for a job that was accepted earlier and would not be today.
    pub plan: Option<proto::MemoryPlan>,
    /// Its optimizer steps.
    pub steps: u64,
}

/// Accepts jobs.
#[derive(Clone)]
pub struct Queue {
    jobs: Jobs,
    admission: Admission,
}

impl Queue {
    /// Returns a queue behind an admission.
    #[must_use]
    pub fn new(jobs: Jobs, admission: Admission) -> Queue {
        Queue { jobs, admission }
    }

    /// Returns the jobs' records.
    #[must_use]
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// Accepts a request, or refuses it with nothing queued. The same idempotency key and body is
    /// the same job for ever, also when the data set's name means another revision by now.
    ///
    /// # Errors
    /// As [`Admission::check`]; `AlreadyExists` with field `idempotency_key` for a key that was
    /// used with another body.
    pub async fn create(&self, asked: &proto::CreateJobRequest) -> Result<Accepted> {
        if asked.policy.is_empty() {
            self.admission.check_form(asked)?;
        } else {
            policy::check_alone(asked)?;
        }
        let id = job_id(Kind::Train, &asked.idempotency_key)?;
        if let Some(known) = self.known(&id, asked).await? {
            return Ok(known);
        }
        let checked = self.check(asked).await?;
        let (plan, steps) = (Some(checked.plan), checked.request.steps);
        if asked.validate_only {
            return Ok(Accepted {
                job: None,
                plan,
                steps,
            });
        }
        match self.submit(&id, &checked.request).await {
            Ok(job) => Ok(Accepted {
                job: Some(job),
                plan,
                steps,
            }),
            // Another request with the same key came first, and a new revision came in between.
            Err(Error::Runtime(error)) if error.class() == Class::AlreadyExists => {
                self.known(&id, asked).await?.ok_or(Error::Runtime(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Queues a job whose request was checked.
    ///
    /// # Errors
    /// `AlreadyExists` if the id is another request's; the store's and the bus's.
    pub async fn submit(&self, id: &JobId, request: &JobRequest) -> Result<Job> {
        let job = self.jobs.submit(Kind::Train, id, request).await?;
        let (dataset, steps) = (&request.identity.dataset, request.steps);
        info!(job = %id, dataset, steps, "job accepted");
        Ok(job)
    }

    /// Returns what a job was asked.
    ///
    /// # Errors
    /// `NotFound` with field `job`.
    pub async fn request(&self, id: &JobId) -> Result<JobRequest> {
        JobRequest::from_json(&self.jobs.request(id).await?)
    }

    async fn check(&self, asked: &proto::CreateJobRequest) -> Result<Checked> {
        let resolved = policy::resolve(&self.admission.store, asked).await?;
        self.admission.check(&resolved).await
    }

    async fn known(&self, id: &JobId, asked: &proto::CreateJobRequest) -> Result<Option<Accepted>> {
        if asked.idempotency_key.is_empty() {
            return Ok(None);
        }
        let known = match self.request(id).await {
            Ok(known) => known,
            Err(error) if error.class() == Class::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // The policy sets the rest of the request.
        let same = match asked.policy.as_str() {
            "" => known.request == request::normal(asked)?,
            policy => known.request.policy == policy,
        };
        if !same {
            let message = "idempotency_key was used before with another body";
            return Err(togi_runtime::Error::new(Class::AlreadyExists, message)
                .with_field("idempotency_key")
                .into());
        }
        let plan = self.check(asked).await.ok().map(|checked| checked.plan);
        if asked.validate_only {
            return Ok(Some(Accepted {
                job: None,
                plan,
                steps: known.steps,
            }));
        }
        // Submitting again says to the bus, too, what a process that died in between did not say
        // any more.
        let job = self.jobs.submit(Kind::Train, id, &known).await?;
        Ok(Some(Accepted {
            job: Some(job),
            plan,
            steps: known.steps,
        }))
    }
}
