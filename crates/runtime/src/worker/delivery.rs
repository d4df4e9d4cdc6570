//! A message of the job stream, and how it is answered.

use std::time::{Duration, Instant};

use async_nats::Subject;
use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use serde_json::Value;

use crate::{events, telemetry};

/// A message and how to answer it.
pub(super) struct Delivery {
    pub(super) message: jetstream::Message,
    pub(super) reply: Subject,
    /// Its place in the stream.
    pub(super) place: u64,
    pub(super) delivered: i64,
    /// Not later than the server's start of the lease.
    pub(super) since: Instant,
}

/// The request of a bare message, with its names resolved now.
pub(super) struct Bare {
    pub(super) request: Value,
    /// Whether the message itself is the job's key.
    pub(super) is_key: bool,
}

impl Delivery {
    pub(super) fn new(message: jetstream::Message, since: Instant) -> Option<Self> {
        let info = message.info().ok()?;
        let (place, delivered) = (info.stream_sequence, info.delivered);
        let reply = message.reply.clone()?;
        Some(Self {
            reply,
            place,
            delivered,
            since,
            message,
        })
    }

    pub(super) fn header(&self, name: &str) -> Option<String> {
        let headers = self.message.headers.as_ref()?;
        events::header(headers, name).map(|value| value.to_string())
    }

    /// Whether a plain NATS client sent it. Such a message is a request and names no job.
    pub(super) fn is_bare(&self) -> bool {
        self.header("ce-type").is_none()
    }

    /// The span in which a bare message becomes a job, in the sender's trace or a new one. Other
    /// messages have their job's trace.
    pub(super) fn admission(&self) -> tracing::Span {
        if !self.is_bare() {
            return tracing::Span::none();
        }
        let span = tracing::info_span!("admit", otel.kind = "consumer", place = self.place);
        let trace = self.header(telemetry::TRACEPARENT).unwrap_or_default();
        telemetry::span_with_parent(span, &trace)
    }
}

/// Returns the answer that asks for redelivery after a delay.
pub(super) fn nak(delay: Duration) -> String {
    let payload: Bytes = AckKind::Nak(Some(delay)).into();
    String::from_utf8_lossy(&payload).into_owned()
}
