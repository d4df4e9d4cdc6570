//! The events of jobs and aliases, made from our own types.

use togi_common::{AliasName, Generation, JobId};
use togi_proto::events::v1;

use crate::events::Event;
use crate::job::{Job, Kind, State};

impl Event {
    pub(crate) fn job_queued(job: &JobId, kind: Kind) -> Self {
        v1::JobQueued {
            job: job.to_string(),
            kind: kind.name().to_owned(),
        }
        .into()
    }

    /// Returns the event of a job that a worker has claimed.
    pub(crate) fn job_started(job: &Job) -> Self {
        v1::JobStarted {
            job: job.id.to_string(),
            kind: job.kind.name().to_owned(),
            worker: job.worker.clone(),
            epoch: job.fence.0,
        }
        .into()
    }

    /// Returns the event of a job's end; `None` before it.
    pub(crate) fn job_ended(ended: &Job) -> Option<Self> {
        let (job, kind) = (ended.id.to_string(), ended.kind.name().to_owned());
        Some(match ended.state {
            State::Queued | State::Running => return None,
            State::Succeeded => v1::JobSucceeded {
                job,
                kind,
                result: ended.result.clone(),
                refusal: ended.refusal.clone(),
            }
            .into(),
            State::Cancelled => v1::JobCancelled { job, kind }.into(),
            State::Failed => {
                let failure = ended.failure.as_ref();
                v1::JobFailed {
                    job,
                    kind,
                    code: failure
                        .map(|f| f.class.name().to_owned())
                        .unwrap_or_default(),
                    message: failure.map(|f| f.message.clone()).unwrap_or_default(),
                }
                .into()
            }
        })
    }

    pub(crate) fn adapter_promoted(
        alias: &AliasName,
        generation: Generation,
        revision: u64,
    ) -> Self {
        v1::AdapterPromoted {
            alias: alias.to_string(),
            generation: generation.to_string(),
            revision,
        }
        .into()
    }

    pub(crate) fn adapter_rolled_back(
        alias: &AliasName,
        generation: Generation,
        revision: u64,
    ) -> Self {
        v1::AdapterRolledBack {
            alias: alias.to_string(),
            generation: generation.to_string(),
            revision,
        }
        .into()
    }
}
