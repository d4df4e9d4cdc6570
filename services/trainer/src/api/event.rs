//! The events of a run.

use togi_proto::events::v1 as proto;
use togi_runtime::{Event, layout};

use crate::run::announcement::Announcement;

impl From<Announcement<'_>> for Event {
    fn from(announcement: Announcement<'_>) -> Self {
        match announcement {
            Announcement::CheckpointSaved {
                job,
                step,
                manifest,
            } => proto::CheckpointSaved {
                job: job.to_string(),
                step,
                manifest: manifest.to_string(),
            }
            .into(),
            Announcement::AdapterPublished { job, generation } => proto::AdapterPublished {
                generation: generation.to_string(),
                job: job.to_string(),
                manifest: layout::adapter_manifest(generation).to_string(),
            }
            .into(),
            Announcement::AdapterEvaluated(evaluation) => {
                proto::AdapterEvaluated::from(evaluation).into()
            }
        }
    }
}
