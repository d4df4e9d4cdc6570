//! What a handler is, and what passes between it and the loop.

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use togi_common::JobId;

use crate::error::{Class, Error, Result};
use crate::jobs::job::{Job, Kind};
use crate::life::stop::Stopper;
use crate::worker::lease::Lease;

/// Does the work of one kind of job.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The kind.
    const KIND: Kind;

    /// Does a job. It may run twice, here or elsewhere: the same work must give the same objects.
    /// It watches `claim.lease` (lost, cancelled) and `claim.stopper` itself, and calls
    /// `claim.lease.check()` before it commits anything.
    async fn handle(&self, claim: Claim) -> Outcome;

    /// Checks a request that came as a bare NATS message (proto3 JSON, no `ce-*` headers) and
    /// returns it as the service would have submitted it. An error that is not retryable sends
    /// the message to the dead letters with its reason. The default takes any JSON object.
    ///
    /// # Errors
    /// What the service would answer to the same request over gRPC.
    async fn admit(&self, request: Bytes) -> Result<Admission> {
        Admission::from_json(&request)
    }
}

/// A request that was let in.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// The caller's key; empty if there is none.
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

/// A job that is ours for now.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Its record after the claim.
    pub job: Job,
    /// What was asked: proto3 JSON.
    pub request: Bytes,
    /// How long it is ours, and the fencing token.
    pub lease: Lease,
    /// Stops when the process should end: hand the job back then.
    pub stopper: Stopper,
}

impl Claim {
    /// Returns the job's id.
    #[must_use]
    pub fn id(&self) -> &JobId {
        self.lease.job()
    }
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    /// The result is committed in the store.
    Succeeded {
        /// A data set's digest or a generation.
        result: String,
    },
    /// The result is committed in the store, and a gate does not let it be used: an outcome like
    /// another, with nothing to repeat.
    Refused {
        /// As for [`Outcome::Succeeded`].
        result: String,
        /// Why, in a sentence.
        reason: String,
    },
    /// It did not work. A retryable class is tried again, five times in all; any other is final.
    Failed(Error),
    /// We must stop; somebody else goes on. This is no failed attempt.
    HandBack,
    /// Somebody asked for the end, and it is done.
    Cancelled,
    /// Nobody needs it any more, for this reason; nobody asked for its end.
    Withdrawn(Error),
    /// The job is not ours any more.
    LeaseLost,
}

impl From<Error> for Outcome {
    /// An error that only says why the work stopped is that outcome, for a handler that uses `?`
    /// throughout.
    fn from(error: Error) -> Self {
        match error.class() {
            Class::Cancelled => Outcome::Cancelled,
            Class::Aborted => Outcome::LeaseLost,
            _ => Outcome::Failed(error),
        }
    }
}
