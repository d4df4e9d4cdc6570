//! The handler of a kind of job, and its input and outcome.

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use togi_common::JobId;

use crate::error::{Class, Error, Result};
use crate::job::{Job, Kind};
use crate::life::stop::Stopper;
use crate::worker::lease::Lease;

/// Does the work of one kind of job.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The kind.
    const KIND: Kind;

    /// Does a job. It may run twice, here or elsewhere: the same work must give the same objects.
    /// It watches `claim.lease` (lost, cancelled) and `claim.stopper` itself, and calls
    /// `claim.lease.check()` and `claim.lease.still_open()` before it commits anything.
    async fn handle(&self, claim: Claim) -> Outcome;

    /// Checks the request of a bare NATS message (proto3 JSON, no `ce-*` headers) and returns it as
    /// the service would have submitted it. An error that is not retryable sends the message to the
    /// dead letters with its reason. The default takes any JSON object.
    ///
    /// # Errors
    /// The service's error for the same request over gRPC.
    async fn admit(&self, request: Bytes) -> Result<Admission> {
        Admission::from_json(&request)
    }
}

/// An admitted request.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// The caller's key; empty without one.
    pub idempotency_key: String,
    /// The request as proto3 JSON.
    pub request: Value,
}

impl Admission {
    /// Returns the admission of any JSON object, with its `idempotencyKey`.
    ///
    /// # Errors
    /// `InvalidArgument` if it is no JSON object.
    pub fn from_json(request: &[u8]) -> Result<Self> {
        let request: Value = serde_json::from_slice(request)?;
        let Value::Object(fields) = &request else {
            return Err(Error::new(
                Class::InvalidArgument,
                "a job's request must be a JSON object",
            ));
        };
        let key = fields
            .get("idempotencyKey")
            .or_else(|| fields.get("idempotency_key"));
        let key = key.and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Self {
            idempotency_key: key,
            request,
        })
    }
}

/// A claimed job.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Its record after the claim.
    pub job: Job,
    /// The request as proto3 JSON.
    pub request: Bytes,
    /// The lease, with the fence.
    pub lease: Lease,
    /// Stops when the process should end; the handler then hands the job back.
    pub stopper: Stopper,
}

impl Claim {
    /// Returns the job's id.
    #[must_use]
    pub fn id(&self) -> &JobId {
        self.lease.job()
    }
}

/// The outcome of an attempt.
#[derive(Debug)]
pub enum Outcome {
    /// The result is committed in the store.
    Succeeded {
        /// A data set's digest or a generation.
        result: String,
    },
    /// The result is committed in the store, but a gate refused it. This is no failure and is not
    /// repeated.
    Refused {
        /// As for [`Outcome::Succeeded`].
        result: String,
        /// Why, in a sentence.
        reason: String,
    },
    /// The attempt failed. A retryable class is tried again, five times in all; any other is final.
    Failed(Error),
    /// The process stops and another worker continues. This is no failed attempt.
    HandBack,
    /// The end was requested, and the work has stopped.
    Cancelled,
    /// The result is no longer needed, for this reason. The end was not requested.
    Withdrawn(Error),
    /// Another worker may hold the job.
    LeaseLost,
}

impl From<Error> for Outcome {
    /// An error that only reports why the work stopped is that outcome, so that a handler can use
    /// `?`.
    fn from(error: Error) -> Self {
        match error.class() {
            Class::Cancelled => Outcome::Cancelled,
            Class::Aborted => Outcome::LeaseLost,
            _ => Outcome::Failed(error),
        }
    }
}
