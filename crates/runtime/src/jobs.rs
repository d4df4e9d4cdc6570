//! Jobs. A job has a request in the store, written first; a record in the bucket, changed by
//! compare-and-set; and a message that makes a worker look. The store is the truth: record and
//! message are made again from it, so that losing NATS loses no job.

use async_nats::{HeaderMap, jetstream};
use serde::Serialize;
use serde_json::Value;
use togi_common::{Hasher, JobId, canonical};

use crate::bus::Bus;
use crate::error::{Class, Error, Result};
use crate::events::{self, Event};
pub use crate::job::{Failure, Job, Kind, State, Wait};
use crate::jobs::record::{Envelope, Record};
use crate::layout;
use crate::life::deadline::bounded;
use crate::store::{Store, random_hex};
use crate::telemetry;

mod away;
mod end;
mod named;
mod query;
pub mod reconcile;
pub(crate) mod record;

/// Failed attempts after which a job has failed.
pub const MAX_ATTEMPTS: u32 = 5;

/// The jobs of all kinds. Clones share everything.
#[derive(Clone, Debug)]
pub struct Jobs {
    bus: Bus,
    store: Store,
}

/// Returns a job's id, derived from the caller's key, so that the same key always means the same
/// job. An empty key gives a random id.
///
/// # Errors
/// When the system has no randomness.
pub fn job_id(kind: Kind, idempotency_key: &str) -> Result<JobId> {
    if idempotency_key.is_empty() {
        return layout::parse("job", &random_hex()?);
    }
    let mut hash = Hasher::new();
    hash.update(kind.name());
    hash.update([0]);
    hash.update(idempotency_key);
    layout::parse("job", &hash.finish().to_string()[..20])
}

/// Returns the error of [`Jobs::submit`] for a caller: where it is not known whether the job was
/// accepted, it says so, and with which key to ask again.
#[must_use]
pub fn unclear(error: Error, id: &JobId, idempotency_key: &str) -> Error {
    if !matches!(error.class(), Class::Unavailable | Class::DeadlineExceeded) {
        return error;
    }
    let message = format!(
        "whether job {id} is accepted is not known: {}; send the request again with \
         idempotency_key \"{idempotency_key}\", which never makes a second job",
        error.message()
    );
    Error::new(error.class(), message)
        .with_retry_key(idempotency_key)
        .with_source(error)
}

/// Returns a key for a request that has none, so that it can be repeated.
///
/// # Errors
/// When the system has no randomness.
pub fn random_key() -> Result<String> {
    random_hex()
}

impl Jobs {
    /// Returns the jobs of this bus and store.
    #[must_use]
    pub fn new(bus: &Bus, store: &Store) -> Self {
        Self {
            bus: bus.clone(),
            store: store.clone(),
        }
    }

    pub(crate) fn bus(&self) -> &Bus {
        &self.bus
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Accepts a job: writes its request into the store, its record into the bucket, and its
    /// message into the stream. The job is accepted once the request is written: while NATS is
    /// away, [`Jobs::keep`] does the rest when it is back. Each step is idempotent, so a caller
    /// repeats the call with the same id after an error.
    ///
    /// # Errors
    /// `AlreadyExists` if the id is another request's; those of the store, and then whether the job
    /// is accepted may be unclear: see [`unclear`].
    pub async fn submit(
        &self,
        kind: Kind,
        id: &JobId,
        request: &(impl Serialize + Sync),
    ) -> Result<Job> {
        let kept = self.keep_request(kind, id, serde_json::to_value(request)?);
        let envelope = bounded("the request may have been written", kept).await?;
        let queued = async {
            self.restore(id, &envelope, 0).await?;
            self.get_now(id).await
        };
        match self.bus.in_a_moment(queued).await {
            Err(error) if error.class() == Class::Unavailable => {
                self.bus.leave_undone();
                tracing::warn!(job = %id, error = error.chain(), "a job is accepted without NATS");
                let seen = bounded("", self.seen_by_store(id, &error)).await;
                let accepted = || envelope.to_job(id);
                let wait = Some(self.absence(&error));
                seen.or_else(|_| accepted().map(|job| Job { wait, ..job }))
            }
            job => job,
        }
    }

    /// Returns the job that was accepted with this id and request, `None` before that. A repeated
    /// request need not be checked again.
    ///
    /// # Errors
    /// As [`Jobs::submit`].
    pub async fn accepted(
        &self,
        kind: Kind,
        id: &JobId,
        request: &(impl Serialize + Sync),
    ) -> Result<Option<Job>> {
        let key = layout::job_request(id);
        let known = bounded("nothing was queued", self.store.exists(&key));
        if !known.await? {
            return Ok(None);
        }
        self.submit(kind, id, request).await.map(Some)
    }

    /// Writes the request, or finds the same one there.
    pub(crate) async fn keep_request(
        &self,
        kind: Kind,
        id: &JobId,
        request: Value,
    ) -> Result<Envelope> {
        let key = layout::job_request(id);
        let envelope = Envelope {
            kind: kind.name().to_owned(),
            request,
            create_time: jiff::Timestamp::now(),
            traceparent: telemetry::current_traceparent().unwrap_or_default(),
        };
        let error = match self.store.put_new(&key, canonical::json(&envelope)?).await {
            Ok(_) => return Ok(envelope),
            Err(error) => error,
        };
        if error.class() != Class::AlreadyExists {
            return Err(error);
        }
        let found: Envelope = self.store.get_json(&key).await?;
        let same = found.kind == envelope.kind
            && canonical::json(&found.request)? == canonical::json(&envelope.request)?;
        if same {
            return Ok(found);
        }
        let message = "this idempotency key was used for another request; take a new key or send the same request";
        Err(Error::new(Class::AlreadyExists, message).with_field("idempotency_key"))
    }

    /// Creates the missing record and message of a job whose request is in the store. `message` is
    /// the place of its existing (bare) message, or 0 to publish one.
    pub(crate) async fn restore(
        &self,
        id: &JobId,
        envelope: &Envelope,
        message: u64,
    ) -> Result<()> {
        if let Some(finished) = self.final_record(id).await? {
            return self.settle(&finished).await;
        }
        let job = envelope.to_job(id)?;
        let queued = Event::job_queued(id, job.kind);
        let record = Record { job, message };
        match self
            .bus
            .jobs()
            .create(id.as_str(), record.to_bytes()?)
            .await
        {
            Ok(_) => {}
            Err(error) if error.class() == Class::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        if message == 0 {
            self.ensure_message(id).await?;
        }
        // The event is a hint. The job is accepted, because its message is stored.
        if let Err(error) = self
            .bus
            .publish_in(queued, Some(&envelope.traceparent))
            .await
        {
            tracing::warn!(job = %id, error = error.chain(), "job.queued was not published");
        }
        Ok(())
    }

    /// Publishes a job's message unless the message in its record is still in the stream. Returns
    /// whether it published.
    pub(crate) async fn ensure_message(&self, id: &JobId) -> Result<bool> {
        loop {
            let Some((record, revision)) = self.record(id).await? else {
                return Ok(false);
            };
            if record.job.state.is_final() || self.names_job(record.message, id).await? {
                return Ok(false);
            }
            let kind = record.job.kind;
            let body = Event::job_queued(id, kind).body()?;
            let mut headers = HeaderMap::new();
            headers.insert("ce-specversion", "1.0");
            headers.insert("ce-type", "togi.job.requested");
            headers.insert("ce-source", self.bus.source().as_str());
            headers.insert("ce-subject", id.as_str());
            // The id alone would not do: after the loss of a stream the new message would count as
            // a repetition of the lost one.
            let unique = events::message_id(
                &format!("requested {}", record.message),
                id.as_str().as_bytes(),
            );
            headers.insert("ce-id", unique.as_str());
            headers.insert("Nats-Msg-Id", unique.as_str());
            if !record.job.traceparent.is_empty() {
                headers.insert(telemetry::TRACEPARENT, record.job.traceparent.as_str());
            }
            let message = self
                .bus
                .send(events::job_subject(kind), headers, body)
                .await?;
            let record = Record { message, ..record };
            match self
                .bus
                .jobs()
                .update(id.as_str(), record.to_bytes()?, revision)
                .await
            {
                Ok(_) => return Ok(true),
                // A worker has claimed the job, or another sender was faster.
                Err(error) if error.class() == Class::Aborted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns whether the message at this place of the stream is this job's. A bare message names
    /// no job; only the record names it, so its presence is enough.
    pub(crate) async fn names_job(&self, message: u64, id: &JobId) -> Result<bool> {
        if message == 0 {
            return Ok(false);
        }
        let gone = "the job stream cannot be read";
        self.bus.link().connected().await?;
        let stream = self.bus.js().get_stream_no_info(events::JOBS_STREAM).await;
        let stream = stream.map_err(|error| Error::unavailable(gone).with_source(error))?;
        match stream.direct_get(message).await {
            Ok(found) => {
                let named =
                    events::header(&found.headers, "ce-subject").map(|named| named == id.as_str());
                Ok(named.unwrap_or(true))
            }
            Err(error) if error.kind() == jetstream::stream::DirectGetErrorKind::NotFound => {
                Ok(false)
            }
            Err(error) => Err(Error::unavailable(gone).with_source(error)),
        }
    }

    pub(crate) async fn record(&self, id: &JobId) -> Result<Option<(Record, u64)>> {
        let Some(entry) = self.bus.jobs().get(id.as_str()).await? else {
            return Ok(None);
        };
        let Some(value) = entry.value else {
            return Ok(None);
        };
        Ok(Some((Record::from_bytes(&value)?, entry.revision)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unclear_acceptance_names_the_key_and_a_clear_refusal_does_not() {
        let id: JobId = "j1".parse().unwrap();
        for class in [Class::Unavailable, Class::DeadlineExceeded] {
            let error = unclear(Error::new(class, "it hangs"), &id, "k1");
            let says = "whether job j1 is accepted is not known: it hangs; send the request again \
                        with idempotency_key \"k1\", which never makes a second job";
            assert_eq!((error.class(), error.message()), (class, says));
            assert_eq!(error.retry_key(), Some("k1"));
        }
        let refused = unclear(Error::invalid("base", "is unknown"), &id, "k1");
        assert_eq!(
            (refused.message(), refused.retry_key()),
            ("is unknown", None)
        );
    }
}
