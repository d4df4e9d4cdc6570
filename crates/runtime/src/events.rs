//! All subjects, and the events. Events are CloudEvents 1.0 in NATS' binary mode: attributes in
//! `ce-*` headers and a body of proto3 JSON, so that `nats sub` shows them readably. They carry ids
//! and object keys, never data.

use std::time::SystemTime;

use async_nats::HeaderMap;
use bytes::Bytes;
use togi_common::{Hasher, JobId};
use togi_proto::events::v1;

use crate::error::{Error, Result};
use crate::job::Kind;

mod cloud;
mod published;
pub use cloud::{Metadata, header};

/// Stream of job messages.
pub const JOBS_STREAM: &str = "TOGI_JOBS";
/// Stream of events.
pub const EVENTS_STREAM: &str = "TOGI_EVENTS";
/// Stream of dead letters: failed jobs, and messages that are no jobs.
pub const DEAD_STREAM: &str = "TOGI_DEAD";
/// Stream of progress: the newest message of each job.
pub const PROGRESS_STREAM: &str = "TOGI_PROGRESS";

/// Subjects of all job messages.
pub const ALL_JOBS: &str = "togi.jobs.*";
/// Subjects of all events.
pub const ALL_EVENTS: &str = "togi.events.>";
/// Subjects of all dead letters.
pub const ALL_DEAD: &str = "togi.dead.*";
/// Subjects of all progress.
pub const ALL_PROGRESS: &str = "togi.progress.*";

/// Largest body of a message, in bytes: events carry references.
pub const MAX_BODY_BYTES: usize = 64 << 10;

/// Returns the subject of a kind's job messages: `togi.jobs.train`.
#[must_use]
pub fn job_subject(kind: Kind) -> String {
    format!("togi.jobs.{}", kind.name())
}

/// Returns the name of the consumer from which all workers of a kind pull.
#[must_use]
pub fn consumer(kind: Kind) -> String {
    format!("togi-{}", kind.name())
}

/// Returns the subject of a kind's dead letters: `togi.dead.train`.
#[must_use]
pub fn dead_subject(kind: Kind) -> String {
    format!("togi.dead.{}", kind.name())
}

/// Returns the subject of a job's progress: `togi.progress.<job>`.
#[must_use]
pub fn progress_subject(job: &JobId) -> String {
    format!("togi.progress.{job}")
}

/// The part of a subject with few values, for metrics: `togi.events.dataset.ready`, but
/// `togi.progress`.
pub(crate) fn family(subject: &str) -> &str {
    let many = ALL_PROGRESS.trim_end_matches('*');
    if subject.starts_with(many) {
        many.trim_end_matches('.')
    } else {
        subject
    }
}

macro_rules! events {
    ($($name:ident $what:literal $subject:ident;)*) => {
        /// Something that happened.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Event {
            $(#[doc = concat!("`togi.events.", $what, "`")] $name(v1::$name),)*
        }

        /// The kind of an event, for filters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum EventKind {
            $(#[doc = concat!("`togi.events.", $what, "`")] $name,)*
        }

        impl EventKind {
            /// Every kind.
            pub const ALL: &[EventKind] = &[$(EventKind::$name,)*];

            /// Returns the name, for example `dataset.ready`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(EventKind::$name => $what,)* }
            }
        }

        impl Event {
            /// Returns the event's kind.
            #[must_use]
            pub fn kind(&self) -> EventKind {
                match self { $(Event::$name(_) => EventKind::$name,)* }
            }

            /// Returns its subject: a data set's digest, a job, a generation or an alias.
            #[must_use]
            pub fn about(&self) -> &str {
                match self { $(Event::$name(body) => &body.$subject,)* }
            }

            /// Returns the body as proto3 JSON.
            ///
            /// # Errors
            /// Never for a body that the contract allows.
            pub fn body(&self) -> Result<Bytes> {
                let body = match self { $(Event::$name(body) => serde_json::to_vec(body)?,)* };
                Ok(body.into())
            }

            fn decode(kind: EventKind, body: &[u8]) -> Result<Event> {
                Ok(match kind {
                    $(EventKind::$name => Event::$name(serde_json::from_slice(body)?),)*
                })
            }
        }

        $(impl From<v1::$name> for Event {
            fn from(body: v1::$name) -> Self {
                Event::$name(body)
            }
        })*
    };
}

events! {
    DatasetReady "dataset.ready" dataset;
    JobQueued "job.queued" job;
    JobStarted "job.started" job;
    JobSucceeded "job.succeeded" job;
    JobFailed "job.failed" job;
    JobCancelled "job.cancelled" job;
    CheckpointSaved "checkpoint.saved" job;
    AdapterPublished "adapter.published" generation;
    AdapterEvaluated "adapter.evaluated" generation;
    AdapterPromoted "adapter.promoted" alias;
    AdapterRolledBack "adapter.rolled-back" alias;
    AdapterLoaded "adapter.loaded" alias;
    AdapterRejected "adapter.rejected" alias;
}

impl EventKind {
    /// Returns the kind with that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<EventKind> {
        EventKind::ALL
            .iter()
            .copied()
            .find(|kind| kind.name() == name)
    }

    /// Returns the subject: `togi.events.dataset.ready`.
    #[must_use]
    pub fn subject(self) -> String {
        format!("togi.events.{}", self.name())
    }

    /// Returns CloudEvents' type: `togi.dataset.ready`.
    #[must_use]
    pub fn type_name(self) -> String {
        format!("togi.{}", self.name())
    }
}

impl Event {
    /// Returns the id. It is the same for the same kind and body, so that repetitions count as one
    /// event.
    ///
    /// # Errors
    /// As [`Event::body`].
    pub fn id(&self) -> Result<String> {
        Ok(message_id(self.kind().name(), &self.body()?))
    }

    /// Returns the headers of the event's message.
    ///
    /// # Errors
    /// As [`Event::body`].
    pub fn headers(&self, source: &str, traceparent: Option<&str>) -> Result<HeaderMap> {
        let meta = Metadata {
            id: self.id()?,
            type_name: self.kind().type_name(),
            source: source.to_owned(),
            subject: self.about().to_owned(),
            time: Some(SystemTime::now()),
            traceparent: traceparent.unwrap_or_default().to_owned(),
            sequence: 0,
        };
        Ok(meta.to_headers())
    }

    /// Returns a message's event and its metadata, from binary or structured mode.
    ///
    /// # Errors
    /// `InvalidArgument` if the message is no CloudEvent of Togi.
    pub fn from_message(headers: Option<&HeaderMap>, payload: &[u8]) -> Result<(Event, Metadata)> {
        let empty = HeaderMap::new();
        let (meta, body) = cloud::read(headers.unwrap_or(&empty), payload)?;
        let kind = meta
            .type_name
            .strip_prefix("togi.")
            .and_then(EventKind::from_name);
        let Some(kind) = kind else {
            return Err(Error::invalid(
                "ce-type",
                format!("\"{}\" is no event of ours", meta.type_name),
            ));
        };
        Ok((Event::decode(kind, &body)?, meta))
    }
}

/// Returns a deterministic message id: the same for the same kind and body.
#[must_use]
pub fn message_id(kind: &str, body: &[u8]) -> String {
    let mut hash = Hasher::new();
    hash.update(kind.as_bytes());
    hash.update([0]);
    hash.update(body);
    hash.finish().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Event {
        v1::DatasetReady {
            dataset: "d1".into(),
            name: "研ぎ 100%".into(),
            revision: 2,
            ..Default::default()
        }
        .into()
    }

    #[test]
    fn an_event_survives_its_message() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let headers = ready().headers("togi/test", Some(trace)).unwrap();
        let (event, meta) = Event::from_message(Some(&headers), &ready().body().unwrap()).unwrap();
        assert_eq!(event, ready());
        assert_eq!(
            (meta.type_name.as_str(), meta.subject.as_str()),
            ("togi.dataset.ready", "d1")
        );
        assert_eq!(
            (meta.traceparent.as_str(), meta.source.as_str()),
            (trace, "togi/test")
        );
        assert_eq!(header(&headers, "Nats-Msg-Id").unwrap(), meta.id);
        assert!(meta.time.is_some());
    }

    #[test]
    fn header_names_have_no_case() {
        let mut headers = HeaderMap::new();
        headers.insert("CE-Type", "togi.job.queued");
        headers.insert("Ce-Id", "1");
        headers.insert("TraceParent", "t");
        let (event, meta) =
            Event::from_message(Some(&headers), br#"{"job":"j","kind":"train"}"#).unwrap();
        assert_eq!(event.about(), "j");
        assert_eq!(meta.traceparent, "t");
    }

    #[test]
    fn the_id_depends_on_kind_and_body_alone() {
        assert_eq!(ready().id().unwrap(), ready().id().unwrap());
        let queued: Event = v1::JobQueued {
            job: "j".into(),
            kind: "train".into(),
        }
        .into();
        let cancelled: Event = v1::JobCancelled {
            job: "j".into(),
            kind: "train".into(),
        }
        .into();
        assert_ne!(queued.id().unwrap(), cancelled.id().unwrap());
    }

    #[test]
    fn structured_mode_is_read_too() {
        let mut headers = HeaderMap::new();
        headers.insert(
            "content-type",
            "application/cloudevents+json; charset=utf-8",
        );
        let body = br#"{"specversion":"1.0","type":"togi.job.queued","id":"7","source":"x","data":{"job":"j"}}"#;
        let (event, meta) = Event::from_message(Some(&headers), body).unwrap();
        assert_eq!((event.about(), meta.id.as_str()), ("j", "7"));
    }

    #[test]
    fn strangers_are_refused_with_the_reason() {
        let mut headers = HeaderMap::new();
        headers.insert("ce-type", "com.example.other");
        assert_eq!(
            Event::from_message(Some(&headers), b"{}")
                .unwrap_err()
                .field(),
            Some("ce-type")
        );
        assert!(Event::from_message(None, b"{}").is_err());
    }
}
