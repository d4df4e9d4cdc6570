//! From a request to a queued job: checked, stored, then announced.

use togi_runtime::jobs::{Job, Kind, job_id, unclear};
use togi_runtime::life::deadline::{bounded, bounded_by_caller};
use togi_runtime::{Class, JobId, Jobs};
use tracing::info;

use crate::error::{Error, Result};
use crate::fit::MemoryPlan;
use crate::policies::policy;
use crate::request::{Asked, JobRequest};
use crate::submission::{Admission, Checked};

const NOTHING_QUEUED: &str = "nothing was queued";

/// An accepted request.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    /// The job; `None` if the request was only validated.
    pub job: Option<Job>,
    /// Its memory; `None` for a job that was accepted earlier and would be refused today.
    pub plan: Option<MemoryPlan>,
    /// Its optimizer steps.
    pub steps: u64,
}

/// How far a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is checked and queued.
    Submit,
    /// It is only checked.
    Validate,
}

/// Accepts jobs.
#[derive(Clone)]
pub(crate) struct Queue {
    jobs: Jobs,
    admission: Admission,
}

impl Queue {
    /// Returns a queue behind an admission.
    #[must_use]
    pub(crate) fn new(jobs: Jobs, admission: Admission) -> Queue {
        Queue { jobs, admission }
    }

    /// Returns the jobs' records.
    #[must_use]
    pub(crate) fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// Accepts a request, or refuses it with nothing queued. The same idempotency key and body is
    /// the same job for ever, also when the data set's name means another revision by now.
    ///
    /// # Errors
    /// As [`Admission::check`]; `AlreadyExists` with field `idempotency_key` for a key that was
    /// used with another body.
    pub(crate) async fn create(&self, asked: &Asked, mode: Mode) -> Result<Accepted> {
        if let Asked::Parts(request) = asked {
            self.admission.check_form(request)?;
        }
        let key = asked.idempotency_key();
        let id = job_id(Kind::Train, key)?;
        if let Some(known) = self.known(&id, asked, mode).await? {
            return Ok(known);
        }
        let checked = bounded_by_caller(NOTHING_QUEUED, self.check(asked)).await?;
        let (plan, steps) = (Some(checked.plan), checked.request.steps);
        if mode == Mode::Validate {
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
            Err(Error::Runtime(error)) if error.class() == Class::AlreadyExists => self
                .known(&id, asked, mode)
                .await?
                .ok_or(Error::Runtime(error)),
            Err(Error::Runtime(error)) => Err(unclear(error, &id, key).into()),
            Err(error) => Err(error),
        }
    }

    /// Queues a job whose request was checked.
    ///
    /// # Errors
    /// `AlreadyExists` if the id is another request's; the store's and the bus's.
    pub(crate) async fn submit(&self, id: &JobId, request: &JobRequest) -> Result<Job> {
        let job = self.jobs.submit(Kind::Train, id, request).await?;
        let (dataset, steps) = (request.identity.dataset, request.steps);
        info!(job = %id, %dataset, steps, "job accepted");
        Ok(job)
    }

    /// Returns what a job was asked.
    ///
    /// # Errors
    /// `NotFound` with field `job`.
    pub(crate) async fn request(&self, id: &JobId) -> Result<JobRequest> {
        JobRequest::from_json(&self.jobs.request(id).await?)
    }

    async fn check(&self, asked: &Asked) -> Result<Checked> {
        let resolving = policy::resolve(&self.admission.store, asked);
        let resolved = bounded(NOTHING_QUEUED, resolving).await?;
        self.admission.check(&resolved).await
    }

    async fn known(&self, id: &JobId, asked: &Asked, mode: Mode) -> Result<Option<Accepted>> {
        if asked.idempotency_key().is_empty() {
            return Ok(None);
        }
        let known = match bounded(NOTHING_QUEUED, self.request(id)).await {
            Ok(known) => known,
            Err(error) if error.class() == Class::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // The policy sets the rest of the request.
        let same = match asked {
            Asked::Parts(request) => known.request == **request,
            Asked::Policy { policy, .. } => known.request.policy.as_ref() == Some(policy),
        };
        if !same {
            let message = "idempotency_key was used before with another body";
            return Err(togi_runtime::Error::new(Class::AlreadyExists, message)
                .with_field("idempotency_key")
                .into());
        }
        let checking = bounded(NOTHING_QUEUED, self.check(asked));
        let plan = checking.await.ok().map(|checked| checked.plan);
        if mode == Mode::Validate {
            return Ok(Some(Accepted {
                job: None,
                plan,
                steps: known.steps,
            }));
        }
        // The process that accepted it may have died before it published the job's message.
        let submitted = self.jobs.submit(Kind::Train, id, &known).await;
        let job = submitted.map_err(|error| unclear(error, id, asked.idempotency_key()))?;
        Ok(Some(Accepted {
            job: Some(job),
            plan,
            steps: known.steps,
        }))
    }
}
