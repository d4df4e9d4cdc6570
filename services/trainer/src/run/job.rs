//! A claimed job: its request, checked against its base.

use std::sync::Arc;

use togi_runtime::JobId;

use crate::bases::BaseInfo;
use crate::recipe::Recipe;
use crate::request::JobRequest;
use crate::run::checkpoint::Owner;

/// A claimed job. Its parts are consistent with each other.
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) request: JobRequest,
    pub(crate) recipe: Recipe,
    pub(crate) base: Arc<BaseInfo>,
    pub(crate) owner: Owner,
}
