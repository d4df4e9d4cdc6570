//! Requests for adapters, and a job's `request.json`: a request with the digests that its names
//! stood for. `api/request.rs` has the JSON of a request.

use serde::{Deserialize, Serialize};
use togi_runtime::registry::adapter_manifest::Identity;

use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::recipe::Recipe;

/// A job's request, complete: everything that the result depends on is named by digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobRequest {
    /// What was asked.
    pub request: CreateJob,
    /// What its names meant.
    pub identity: Identity,
    /// The data set's rows to train on.
    pub rows: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// The policy that asked, or was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// Where a policy's job comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Origin {
    /// The policy.
    pub policy: String,
    /// Its version.
    pub version: u64,
    /// The revision of its data set.
    pub revision: u64,
    /// Who started it.
    pub by: By,
}

/// Who started a policy's job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum By {
    /// Its trigger: the job is withdrawn if a newer revision comes before it has begun.
    Trigger,
    /// A request that named the policy, or its trigger for the last time: newer revisions do not
    /// withdraw the job.
    Request,
}

/// A request for an adapter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Asked {
    /// One that names every part.
    Parts(Box<CreateJob>),
    /// One that trains the newest revision of a policy's data set.
    Policy {
        /// The policy.
        policy: String,
        /// The caller's key; empty for none.
        idempotency_key: String,
    },
}

impl Asked {
    /// Returns the caller's key; empty for none.
    #[must_use]
    pub(crate) fn idempotency_key(&self) -> &str {
        match self {
            Self::Parts(request) => &request.idempotency_key,
            Self::Policy {
                idempotency_key, ..
            } => idempotency_key,
        }
    }

    /// Returns the request with a random key if the caller gave none: an answer whose outcome is
    /// not known can then name the key to ask again with.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(crate) fn or_random_key(mut self) -> Result<Self> {
        let key = match &mut self {
            Self::Parts(request) => &mut request.idempotency_key,
            Self::Policy {
                idempotency_key, ..
            } => idempotency_key,
        };
        if key.is_empty() {
            *key = togi_runtime::jobs::random_key()?;
        }
        Ok(self)
    }
}

/// A request that names every part, with recipe and gate complete.
#[derive(Clone, Debug, PartialEq)]
pub struct CreateJob {
    /// The name of a base in the service's configuration.
    pub base: String,
    /// A data set's digest, or its name for the newest revision.
    pub dataset: String,
    /// How to train.
    pub recipe: Recipe,
    /// The alias that the adapter is promoted to; empty for none.
    pub alias: String,
    /// The caller's key; empty for none.
    pub idempotency_key: String,
    /// What the adapter must pass before it is promoted.
    pub gate: Option<Gate>,
    /// The policy that has filled in the parts.
    pub policy: Option<String>,
}

/// A request with every part, and the policy that filled them in.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    /// The request.
    pub request: CreateJob,
    /// The policy that it comes from; `None` without a policy.
    pub origin: Option<Origin>,
}

impl JobRequest {
    /// Reads a job's request.
    ///
    /// # Errors
    /// `InvalidArgument` if it cannot be parsed.
    pub(crate) fn from_json(bytes: &[u8]) -> Result<Self> {
        Ok(serde_json::from_slice(bytes).map_err(togi_runtime::Error::from)?)
    }
}

/// Checks an idempotency key.
///
/// # Errors
/// [`Error::Invalid`] with field `idempotency_key`.
pub(crate) fn check_key(key: &str) -> Result<()> {
    if key.len() > 256 {
        return Err(Error::invalid("idempotency_key", "has more than 256 bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use togi_common::canonical;

    use super::*;

    /// A request as the store has it. Jobs of earlier versions are read for ever, and the same key
    /// must give the same bytes, so this spelling never changes.
    const STORED: &str = concat!(
        r#"{"identity":{"base":"b","base_precision":"nf4","#,
        r#""dataset":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","#,
        r#""recipe":"r","#,
        r#""template":"p","tokenizer":"t"},"#,
        r#""origin":{"by":"trigger","policy":"nightly","revision":2,"version":1},"#,
        r#""request":{"alias":"kana","base":"tiny","dataset":"d","gate":{"answerTolerance":0.05,"#,
        r#""leastRight":0.0,"lossTolerance":0.5,"maxNewTokens":64,"#,
        r#""questions":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},"#,
        r#""idempotencyKey":"k","policy":"nightly","#,
        r#""recipe":{"accumulation":1,"adamBeta1":0.9,"adamBeta2":0.999,"adamEpsilon":1e-8,"#,
        r#""basePrecision":"nf4","batchSize":4,"checkpointEvery":"100","epochs":1,"#,
        r#""learningRate":0.0002,"lora":{"alpha":32.0,"dropout":0.1,"rank":8,"#,
        r#""targetModules":["query_key_value","dense_h_to_4h"]},"maxGradientNorm":1.0,"#,
        r#""maxSteps":"0","name":"n","promote":"manual","seed":"18446744073709551615","#,
        r#""shuffle":true,"warmupSteps":"0","weightDecay":0.0}},"#,
        r#""rows":16,"steps":4}"#,
    );

    #[test]
    fn a_stored_request_keeps_its_spelling() {
        let request = JobRequest::from_json(STORED.as_bytes()).unwrap();
        let written = String::from_utf8(canonical::json(&request).unwrap()).unwrap();
        assert_eq!(written, STORED);
    }

    #[test]
    fn what_is_not_set_is_not_stored() {
        let stored = STORED
            .replace(r#""alias":"kana","#, "")
            .replace(r#""idempotencyKey":"k","policy":"nightly","#, "")
            .replace(r#""name":"n","#, "")
            .replace(r#","questions":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa""#, "");
        let request = JobRequest::from_json(stored.as_bytes()).unwrap();
        let written = String::from_utf8(canonical::json(&request).unwrap()).unwrap();
        assert_eq!(written, stored);
        assert_eq!(request.request.gate.unwrap().questions, None);
    }

    #[test]
    fn a_request_of_before_a_field_existed_has_its_default() {
        let stored = STORED
            .replace(r#""basePrecision":"nf4","#, "")
            .replace(r#""shuffle":true,"#, "")
            .replace(r#""answerTolerance":0.05,"#, "");
        let request = JobRequest::from_json(stored.as_bytes()).unwrap();
        let CreateJob { recipe, gate, .. } = request.request;
        assert_eq!(recipe.precision, crate::recipe::Precision::F32);
        assert!(recipe.shuffle);
        assert_eq!(gate.unwrap().answer_tolerance, 0.05);
    }
}
