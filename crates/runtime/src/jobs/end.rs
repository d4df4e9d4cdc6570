//! The end of a job: decided once, in the store; then written to the bucket and published as an
//! event, for a failure also as a dead letter.

use async_nats::HeaderMap;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use togi_common::{JobId, canonical};

use crate::error::{Class, Error, Result};
use crate::events::{self, Event};
use crate::job::{Failure, Job, Kind, State};
use crate::jobs::Jobs;
use crate::jobs::record::{Envelope, Record};
use crate::layout;
use crate::telemetry;

impl Jobs {
    /// Requests a job's end. A queued job has ended when this returns, a running one when its
    /// worker has noticed. While NATS is away, the store alone decides, and a running job has ended
    /// as well. A cancelled job is returned unchanged.
    ///
    /// # Errors
    /// `FailedPrecondition` if it has ended otherwise; `NotFound`; `Unavailable`.
    pub async fn cancel(&self, id: &JobId) -> Result<Job> {
        match self.bus.in_a_moment(self.request_end(id)).await {
            Err(error) if error.class() == Class::Unavailable => self.cancel_in_store(id).await,
            ended => ended,
        }
    }

    async fn request_end(&self, id: &JobId) -> Result<Job> {
        loop {
            let Some((mut record, revision)) = self.record(id).await? else {
                // Not in the bucket: only the store may know it.
                let job = self.known_to_store(id).await?;
                if job.state.is_final() {
                    self.settle(&job).await?;
                } else {
                    let envelope = self.store.get_json(&layout::job_request(id)).await?;
                    self.restore(id, &envelope, 0).await?;
                }
                continue;
            };
            match record.job.state {
                State::Cancelled => return Ok(record.job),
                State::Succeeded | State::Failed => {
                    let message = format!("job \"{id}\" has ended already");
                    return Err(Error::precondition(message).with_field("job"));
                }
                State::Running => {
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
                State::Queued => {
                    let mut ended = record.job.clone();
                    ended.cancel_requested = true;
                    let ended = self.finish(ended, State::Cancelled).await?;
                    self.settle(&ended).await?;
                    self.say_outcome(&ended).await?;
                    if ended.state == State::Cancelled {
                        return Ok(ended);
                    }
                }
            }
        }
    }

    /// Returns the job's end from the store, `None` before it. A damaged end cannot be written
    /// again, so the job has failed with the class of the damage.
    pub(crate) async fn final_record(&self, id: &JobId) -> Result<Option<Job>> {
        let key = layout::job_final(id);
        match self.store.get_json(&key).await {
            Ok(job) => Ok(Some(job)),
            Err(error) if error.class() == Class::NotFound => Ok(None),
            Err(error) if error.class() == Class::DataLoss => {
                let envelope: Envelope = self.store.get_json(&layout::job_request(id)).await?;
                // The end's time is the object's, so that every reader returns the same job.
                let written = self.store.head(&key).await?.last_modified.timestamp();
                let end_time = Timestamp::from_second(written)
                    .map_err(|error| Error::internal("not a time").with_source(error))?;
                Ok(Some(Job {
                    state: State::Failed,
                    end_time: Some(end_time),
                    failure: Some(Failure::from(&error)),
                    ..envelope.to_job(id)?
                }))
            }
            Err(error) => Err(error),
        }
    }

    /// Decides how a job ended. The first decision stays and is returned.
    pub(crate) async fn finish(&self, mut job: Job, state: State) -> Result<Job> {
        job.state = state;
        job.end_time = Some(Timestamp::now());
        job.worker = String::new();
        job.queue_position = 0;
        job.wait = None;
        let key = layout::job_final(&job.id);
        match self.store.put_new(&key, canonical::json(&job)?).await {
            Ok(_) => Ok(job),
            Err(error) if error.class() == Class::AlreadyExists => {
                self.final_record(&job.id).await?.ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the store's decision into the bucket.
    pub(crate) async fn settle(&self, ended: &Job) -> Result<()> {
        let bucket = self.bus.jobs();
        loop {
            let written = match bucket.get(ended.id.as_str()).await? {
                Some(entry) => {
                    let record = entry.value.as_deref().map(Record::from_bytes).transpose()?;
                    let message = record.as_ref().map_or(0, |record| record.message);
                    if record.is_some_and(|record| record.job.state.is_final()) {
                        return Ok(());
                    }
                    let record = Record {
                        job: ended.clone(),
                        message,
                    };
                    bucket
                        .update(ended.id.as_str(), record.to_bytes()?, entry.revision)
                        .await
                }
                None => {
                    let record = Record {
                        job: ended.clone(),
                        message: 0,
                    };
                    bucket.create(ended.id.as_str(), record.to_bytes()?).await
                }
            };
            match written {
                Ok(_) => return Ok(()),
                Err(error) if matches!(error.class(), Class::Aborted | Class::AlreadyExists) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Publishes a job's end; for a failure, the dead letter first.
    pub(crate) async fn say_outcome(&self, ended: &Job) -> Result<()> {
        let Some(event) = Event::job_ended(ended) else {
            return Ok(());
        };
        if ended.state == State::Failed {
            let body = serde_json::to_value(ended)?;
            self.bury(ended.kind, ended.id.as_str(), body, None).await?;
        }
        let traceparent =
            telemetry::current_traceparent().unwrap_or_else(|| ended.traceparent.clone());
        self.bus.publish_in(event, Some(&traceparent)).await
    }

    /// Publishes a dead letter: a failed job's record, or a message that is no job with the reason.
    pub(crate) async fn bury(
        &self,
        kind: Kind,
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
