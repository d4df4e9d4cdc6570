//! A job's `request.json`: the request, and the digests that its names stood for.

use serde::{Deserialize, Serialize};
use togi_proto::trainer::v1 as proto;
use togi_runtime::registry::adapter_manifest::Identity;

use crate::error::Result;
use crate::gate::Gate;
use crate::recipe::Recipe;

/// A job's request, complete: everything that the result depends on is named by digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// What was asked, with every field of the recipe set.
    pub request: proto::CreateJobRequest,
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
pub struct Origin {
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
pub enum By {
    /// Its trigger: the job is withdrawn if a newer revision comes before it has begun.
    Trigger,
    /// Somebody who named the policy, or its trigger for the last time: the job is done whatever
    /// comes.
    Request,
}

/// A request that names every part: a policy fills in its own.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The request.
    pub request: proto::CreateJobRequest,
    /// The policy that it comes from; `None` without a policy.
    pub origin: Option<Origin>,
}

impl JobRequest {
    /// Reads a job's request.
    ///
    /// # Errors
    /// `InvalidArgument` if it cannot be parsed.
    pub fn from_json(bytes: &[u8]) -> Result<JobRequest> {
        Ok(serde_json::from_slice(bytes).map_err(togi_runtime::Error::from)?)
    }

    /// Returns the recipe.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this build does not take it any more.
    pub fn recipe(&self) -> Result<Recipe> {
        Recipe::from_proto(&self.request.recipe.clone().unwrap_or_default())
    }

    /// Returns the gate; `None` for a request without one.
    ///
    /// # Errors
    /// As [`JobRequest::recipe`].
    pub fn gate(&self) -> Result<Option<Gate>> {
        self.request.gate.as_ref().map(Gate::from_proto).transpose()
    }
}

/// Returns what was asked in the one form in which two requests are compared: recipe and gate
/// complete, `validate_only` validate left out.
///
/// # Errors
/// [`crate::Error::Invalid`] with the recipe's or the gate's field.
pub fn normal(request: &proto::CreateJobRequest) -> Result<proto::CreateJobRequest> {
    let recipe = Recipe::from_proto(&request.recipe.clone().unwrap_or_default())?;
    let gate = request.gate.as_ref().map(Gate::from_proto).transpose()?;
    Ok(proto::CreateJobRequest {
        recipe: Some(recipe.to_proto()),
        gate: gate.map(|gate| gate.to_proto()),
        validate_only: false,
        ..request.clone()
    })
}

#[cfg(test)]
mod tests {
    use togi_common::canonical;

    use super::*;

    /// A request as the store has it. Jobs of earlier versions are read for ever, and the same key
    /// must give the same bytes, so this spelling never changes.
    const STORED: &str = concat!(
        r#"{"identity":{"base":"b","base_precision":"nf4","dataset":"d","recipe":"r","#,
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
        assert_eq!(request.gate().unwrap().unwrap().questions, None);
    }

    #[test]
    fn a_request_of_before_a_field_existed_has_its_default() {
        let stored = STORED
            .replace(r#""basePrecision":"nf4","#, "")
            .replace(r#""shuffle":true,"#, "")
            .replace(r#""answerTolerance":0.05,"#, "");
        let request = JobRequest::from_json(stored.as_bytes()).unwrap();
        let recipe = request.recipe().unwrap();
        assert_eq!(recipe.precision, crate::recipe::Precision::F32);
        assert!(recipe.shuffle);
        assert_eq!(request.gate().unwrap().unwrap().answer_tolerance, 0.05);
    }
}
