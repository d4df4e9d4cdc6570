//! Reading a stream for the life of the process. After any error, a restart of the server or the
//! loss of the stream, a new ephemeral consumer continues at the right place.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};

use crate::bus::Bus;
use crate::error::{Class, Error, Result};
use crate::events::{self, Event, EventKind, Metadata};
use crate::life::backoff::Backoff;

const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// Where reading starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the first event published from now on.
    New,
    /// With the oldest event that is still there.
    All,
    /// With the first one after this place in the stream ([`Metadata::sequence`]).
    After(u64),
}

/// An event that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// What happened.
    pub event: Event,
    /// The metadata of its message.
    pub meta: Metadata,
}

/// Events as they arrive. The stream ends only when the bus's stopper stops.
pub struct EventStream(BoxStream<'static, Received>);

impl Stream for EventStream {
    type Item = Received;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        self.0.poll_next_unpin(cx)
    }
}

impl Bus {
    /// Returns the events of these kinds, of all kinds if the list is empty. Events are hints: one
    /// may arrive twice or never, so a reader must also look into the store from time to time.
    /// Messages that are no events of Togi are left out.
    ///
    /// # Errors
    /// `Cancelled` if the stopper stops before the place of [`Start::New`] is known.
    pub async fn events(&self, kinds: &[EventKind], start: Start) -> Result<EventStream> {
        let next = match start {
            Start::All => 1,
            Start::After(sequence) => sequence + 1,
            Start::New => self.end_of(events::EVENTS_STREAM).await? + 1,
        };
        let subjects = match kinds {
            [] => vec![events::ALL_EVENTS.to_owned()],
            kinds => kinds.iter().map(|kind| kind.subject()).collect(),
        };
        let reader = Reader {
            bus: self.clone(),
            stream: events::EVENTS_STREAM,
            subjects,
            next,
            messages: None,
            backoff: BACKOFF,
        };
        let stopped = self.stopper().stopped();
        let received = futures::stream::unfold(reader, |mut reader| async move {
            let received = reader.event().await;
            Some((received, reader))
        });
        Ok(EventStream(received.take_until(stopped).boxed()))
    }

    async fn end_of(&self, stream: &str) -> Result<u64> {
        let mut backoff = BACKOFF;
        loop {
            match self.js().get_stream(stream).await {
                Ok(found) => return Ok(found.cached_info().state.last_sequence),
                Err(error) => tracing::debug!(%error, stream, "waiting for the stream"),
            }
            if !backoff.wait(self.stopper()).await {
                return Err(Error::new(
                    Class::Cancelled,
                    "stopped before the stream was there",
                ));
            }
        }
    }
}

struct Reader {
    bus: Bus,
    stream: &'static str,
    subjects: Vec<String>,
    /// The place of the next message in the stream.
    next: u64,
    messages: Option<pull::Stream>,
    backoff: Backoff,
}

impl Reader {
    async fn event(&mut self) -> Received {
        loop {
            let message = self.message().await;
            match Event::from_message(message.headers.as_ref(), &message.payload) {
                Ok((event, mut meta)) => {
                    meta.sequence = self.next - 1;
                    return Received { event, meta };
                }
                Err(error) => {
                    let subject = message.subject.as_str();
                    tracing::debug!(subject, error = error.chain(), "not an event of ours");
                }
            }
        }
    }

    async fn message(&mut self) -> jetstream::Message {
        let mut connections = self.bus.connections();
        connections.mark_unchanged();
        loop {
            let failed = match &mut self.messages {
                Some(messages) => {
                    let message = tokio::select! {
                        message = messages.next() => message,
                        // The consumer was in the memory of the old server, so it will not answer.
                        Ok(()) = connections.changed() => None,
                    };
                    match message {
                        Some(Ok(message)) => {
                            let Ok(info) = message.info() else { continue };
                            self.next = info.stream_sequence + 1;
                            self.backoff.reset();
                            return message;
                        }
                        Some(Err(error)) => error.to_string(),
                        None => "the connection is a new one".to_owned(),
                    }
                }
                None => match self.open().await {
                    Ok(messages) => {
                        self.messages = Some(messages);
                        continue;
                    }
                    Err(error) => error.chain(),
                },
            };
            self.messages = None;
            tracing::debug!(stream = self.stream, error = failed, "reading again");
            // A stop ends this wait, because it ends the stream that polls it.
            tokio::time::sleep(self.backoff.step()).await;
        }
    }

    async fn open(&mut self) -> Result<pull::Stream> {
        let gone = |error: &dyn std::fmt::Display| Error::unavailable(error.to_string());
        let found = self
            .bus
            .js()
            .get_stream(self.stream)
            .await
            .map_err(|error| gone(&error))?;
        let last = found.cached_info().state.last_sequence;
        if last + 1 < self.next {
            // The stream was lost and created again, so all its messages are new to us.
            tracing::warn!(
                stream = self.stream,
                "the stream starts again from its beginning"
            );
            self.next = 1;
        }
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: self.next,
            },
            ack_policy: AckPolicy::None,
            filter_subjects: self.subjects.clone(),
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: Duration::from_secs(60),
            ..pull::Config::default()
        };
        let consumer = found
            .create_consumer(config)
            .await
            .map_err(|error| gone(&error))?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(64)
            .expires(Duration::from_secs(30))
            .heartbeat(Duration::from_secs(5))
            .messages()
            .await;
        messages.map_err(|error| gone(&error))
    }
}
