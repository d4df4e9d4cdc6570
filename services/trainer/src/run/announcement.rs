//! The events that a run publishes.

use object_store::path::Path;
use togi_common::Generation;
use togi_runtime::JobId;

use crate::gate::Evaluation;

/// An event of a run.
pub(crate) enum Announcement<'a> {
    /// A checkpoint is in the store.
    CheckpointSaved {
        job: &'a JobId,
        step: u64,
        manifest: &'a Path,
    },
    /// An adapter is in the store.
    AdapterPublished {
        job: &'a JobId,
        generation: Generation,
    },
    /// A gate has decided.
    AdapterEvaluated(&'a Evaluation),
}
