//! How a job ends: decided once, in the store; then said in the bucket, in an event, and for a
//! failure among the dead letters.

use async_nats::HeaderMap;
use bytes::Bytes;
use serde_json::Value;
use togi_common::canonical;
use togi_proto::events::v1 as said;
use togi_proto::job::v1::{Job, JobKind, JobState};

use crate::error::{Class, Error, Result};
use crate::events::{self, Event, kind_name};
use crate::jobs::Jobs;
use crate::jobs::record::{Record, is_final, now};
use crate::layout::{self, JobId};
use crate::telemetry;

impl Jobs {
    /// Asks for a job's end: a queued one has ended when this returns, a running one when its
    /// worker has noticed. A cancelled job is returned as it is.
    ///
    /// # Errors
    /// `FailedPrecondition` if it has ended otherwise; `NotFound`; `Unavailable`.
    pub async fn cancel(&self, id: &JobId) -> Result<Job> {
        loop {
            let Some((mut record, revision)) = self.record(id).await? else {
                // Not in the bucket: known to the store alone, or to nobody.
                let job = self.known_to_store(id).await?;
                if is_final(job.state()) {
                    self.settle(&job).await?;
                } else {
                    let envelope = self.store.get_json(&layout::job_request(id)).await?;
                    self.restore(id, &envelope, 0).await?;
                }
                continue;
            };
            match record.job.state() {
                JobState::Cancelled => return Ok(record.job),
                JobState::Succeeded | JobState::Failed => {
                    let message = format!("job \"{id}\" has ended already");
                    return Err(Error::precondition(message).with_field("job"));
                }
                JobState::Running => {
                    if record.job.cancel_requested {
                        return Ok(record.job);
                    }
                    record.job.cancel_requested = true;
                    match self
                        .bus
                        .jobs()
                        .update(id.as_str(), record.to_bytes()?, revision)
                        .await
                    {
                        Ok(_) => return Ok(record.job),
                        Err(error) if error.class() == Class::Aborted => {}
                        Err(error) => return Err(error),
                    }
                }
                JobState::Queued | JobState::Unspecified => {
                    let mut ended = record.job.clone();
                    ended.cancel_requested = true;
                    let ended = self.finish(ended, JobState::Cancelled).await?;
                    self.settle(&ended).await?;
                    self.say_outcome(&ended).await?;
                    if ended.state() == JobState::Cancelled {
                        return Ok(ended);
                    }
                }
            }
        }
    }

    /// Returns how a job ended, if it has: the store's word, which is final.
    pub(crate) async fn final_record(&self, id: &JobId) -> Result<Option<Job>> {
        match self.store.get_json(&layout::job_final(id)).await {
            Ok(job) => Ok(Some(job)),
            Err(error) if error.class() == Class::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Decides how a job ended, once: the first word stays, and is returned.
    pub(crate) async fn finish(&self, mut job: Job, state: JobState) -> Result<Job> {
        job.set_state(state);
        job.end_time = Some(now());
        job.worker = String::new();
        job.queue_position = 0;
        let id = JobId::parse(&job.id)?;
        match self
            .store
            .put_new(&layout::job_final(&id), canonical::json(&job)?)
            .await
        {
            Ok(_) => Ok(job),
            Err(error) if error.class() == Class::AlreadyExists => {
                self.store.get_json(&layout::job_final(&id)).await
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the bucket say what the store has decided.
    pub(crate) async fn settle(&self, ended: &Job) -> Result<()> {
        let bucket = self.bus.jobs();
        loop {
            let written = match bucket.get(&ended.id).await? {
                Some(entry) => {
                    let record = entry.value.as_deref().map(Record::from_bytes).transpose()?;
                    let message = record.as_ref().map_or(0, |record| record.message);
                    if record.is_some_and(|record| is_final(record.job.state())) {
                        return Ok(());
                    }
                    let record = Record {
                        job: ended.clone(),
                        message,
                    };
                    bucket
                        .update(&ended.id, record.to_bytes()?, entry.revision)
                        .await
                }
                None => {
                    let record = Record {
                        job: ended.clone(),
                        message: 0,
                    };
                    bucket.create(&ended.id, record.to_bytes()?).await
                }
            };
            match written {
                Ok(_) => return Ok(()),
                Err(error) if matches!(error.class(), Class::Aborted | Class::AlreadyExists) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Publishes how a job ended; for one that failed, the dead letter first.
    pub(crate) async fn say_outcome(&self, ended: &Job) -> Result<()> {
        let (job, kind) = (ended.id.clone(), kind_name(ended.kind()).to_owned());
        let event: Event = match ended.state() {
            JobState::Succeeded => said::JobSucceeded {
                job,
                kind,
                result: ended.result.clone(),
                refusal: ended.refusal.clone(),
            }
            .into(),
            JobState::Cancelled => said::JobCancelled { job, kind }.into(),
            JobState::Failed => {
                let error = ended.error.clone().unwrap_or_default();
                self.bury(ended.kind(), &job, serde_json::to_value(ended)?, None)
                    .await?;
                said::JobFailed {
                    job,
                    kind,
                    code: error.code,
                    message: error.message,
                }
                .into()
            }
            _ => return Ok(()),
        };
        let traceparent =
            telemetry::current_traceparent().unwrap_or_else(|| ended.traceparent.clone());
        self.bus.publish_in(event, Some(&traceparent)).await
    }

    /// Puts what failed for good into the stream of the dead: a job's record, or a message that is
    /// no job, with the reason.
    pub(crate) async fn bury(
        &self,
        kind: JobKind,
        about: &str,
        body: Value,
        reason: Option<&Error>,
    ) -> Result<()> {
        let letter = match reason {
            None => serde_json::json!({ "job": body }),
            Some(error) => serde_json::json!({
                "message": body,
                "error": { "code": error.class().name(), "message": error.message(), "field": error.field().unwrap_or_default() },
            }),
        };
        let body = Bytes::from(canonical::json(&letter)?);
        let mut headers = HeaderMap::new();
        let unique = events::message_id("dead", about.as_bytes());
        headers.insert("ce-specversion", "1.0");
        headers.insert("ce-type", "togi.job.dead");
        headers.insert("ce-source", self.bus.source().as_str());
        headers.insert("ce-id", unique.as_str());
        headers.insert("Nats-Msg-Id", unique.as_str());
        self.bus
            .send(events::dead_subject(kind), headers, body)
            .await?;
        Ok(())
    }
}
