//! What a job's `request.json` says: what was asked, and what its names meant when it was asked.

use serde::{Deserialize, Serialize};
use togi_proto::trainer::v1 as proto;
use togi_runtime::registry::Identity;

use crate::{error::Result, recipe::Recipe};

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
}

impl JobRequest {
    /// Reads a job's request.
    ///
    /// # Errors
    /// `InvalidArgument` if it is none.
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
}

/// Returns what was asked in the one form in which two requests are compared: the recipe complete, the wish only to
/// validate left out.
///
/// # Errors
/// [`Error::Invalid`] with the recipe's field.
pub fn normal(request: &proto::CreateJobRequest) -> Result<proto::CreateJobRequest> {
    let recipe = Recipe::from_proto(&request.recipe.clone().unwrap_or_default())?;
    Ok(proto::CreateJobRequest {
        recipe: Some(recipe.to_proto()),
        validate_only: false,
        ..request.clone()
    })
}
