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
