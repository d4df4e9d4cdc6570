//! The bus: one NATS connection, the streams and buckets on it, publishing, and reading events. It
//! waits for an absent server, logs that, and reconnects automatically.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::{self};
use async_nats::{Client, HeaderMap, Subject};
use bytes::Bytes;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use serde::Serialize;
use togi_common::JobId;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use crate::bus::connection::{Heard, Keeper, REQUEST_TIMEOUT, Usable, dial};
use crate::bus::kv::Kv;
use crate::bus::presence::{Away, Link, observe};
use crate::config::NatsConfig;
use crate::error::{Class, Error, Result};
use crate::events::{self, Event};
use crate::life::backoff::Backoff;
use crate::life::crypto::install_crypto;
use crate::life::stop::Stopper;
use crate::telemetry::{self, semconv};

mod connection;
pub mod kv;
pub mod presence;
pub mod reader;
pub mod rounds;
pub mod streams;

const PUBLISH_PATIENCE: Duration = Duration::from_secs(15);

/// The bus. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Bus(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    js: jetstream::Context,
    name: String,
    config: NatsConfig,
    stopper: Stopper,
    connections: watch::Receiver<u64>,
    usable: watch::Receiver<Usable>,
    link: Link,
    undone: watch::Sender<u64>,
    jobs: Kv,
    aliases: Kv,
    policies: Kv,
    replicas: Kv,
    sent: Counter<u64>,
    _keeper: AbortOnDropHandle<()>,
    _observer: AbortOnDropHandle<()>,
}

impl Bus {
    /// Connects, waiting for the server without limit, and creates missing streams and buckets.
    /// `name` identifies this process: it is CloudEvents' source and the connection's name.
    ///
    /// # Errors
    /// `InvalidArgument` if the address or the credentials' file are wrong, `FailedPrecondition` if
    /// the server refuses the credentials, has no JetStream or a stream that contradicts,
    /// `Cancelled` if the stopper stops first.
    pub async fn connect(config: &NatsConfig, name: &str, stopper: &Stopper) -> Result<Self> {
        let bus = Self::connect_later(config, name, stopper).await?;
        bus.usable().await?;
        Ok(bus)
    }

    /// Waits for the server without limit, and until its streams and buckets are there.
    ///
    /// # Errors
    /// As [`Bus::connect`].
    pub async fn usable(&self) -> Result<()> {
        let mut usable = self.0.usable.clone();
        // The sender's task ends before its value is there only with the process.
        let stopped = || Error::new(Class::Cancelled, "stopped before NATS was there");
        let found = usable.wait_for(Option::is_some).await;
        let found = found.map_err(|_| stopped())?.clone();
        match found {
            Some(Err((class, message))) => Err(Error::new(class, message)),
            _ => Ok(()),
        }
    }

    /// Returns the bus at once and connects in the background, for a process that has work without
    /// it. Until the server answers, calls are `Unavailable` and streams of events have not begun.
    ///
    /// # Errors
    /// `InvalidArgument` if the address or the credentials are wrong.
    pub async fn connect_later(config: &NatsConfig, name: &str, stopper: &Stopper) -> Result<Self> {
        install_crypto();
        let (connected, connections) = watch::channel(0u64);
        let (refuses, refused) = watch::channel(false);
        let (absence, away) = watch::channel(Some(Away::unconnected("it is not connected yet")));
        let heard = Heard {
            connections: connected,
            refused: refuses,
            away: absence.clone(),
        };
        let client = dial(config, name, heard).await?;
        let mut js = jetstream::new(client.clone());
        js.set_timeout(REQUEST_TIMEOUT);
        let (settled, usable) = watch::channel(None);
        let keeper = Keeper {
            js: js.clone(),
            config: config.clone(),
            connections: connections.clone(),
            refused,
            usable: settled,
            stopper: stopper.clone(),
        };
        let observer = observe(js.clone(), connections.clone(), absence, stopper.clone());
        let link = Link {
            js: js.clone(),
            away,
        };
        Ok(Self(Arc::new(Inner {
            name: name.to_owned(),
            config: config.clone(),
            stopper: stopper.clone(),
            jobs: Kv::new(&link, streams::JOBS_BUCKET, stopper),
            aliases: Kv::new(&link, streams::ALIASES_BUCKET, stopper),
            policies: Kv::new(&link, streams::POLICIES_BUCKET, stopper),
            replicas: Kv::new(&link, streams::REPLICAS_BUCKET, stopper),
            sent: telemetry::meter()
                .u64_counter(semconv::MESSAGING_SENT_MESSAGES)
                .build(),
            _keeper: AbortOnDropHandle::new(tokio::spawn(keeper.keep())),
            _observer: AbortOnDropHandle::new(tokio::spawn(observer)),
            undone: watch::Sender::new(0),
            link,
            connections,
            usable,
            client,
            js,
        })))
    }

    /// Returns the name of this process.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the configuration.
    #[must_use]
    pub fn config(&self) -> &NatsConfig {
        &self.0.config
    }

    /// Returns the bucket of the jobs' records; [`crate::jobs::Jobs`] is its owner.
    #[must_use]
    pub fn jobs(&self) -> &Kv {
        &self.0.jobs
    }

    /// Returns the mirror of what each alias names.
    #[must_use]
    pub fn aliases(&self) -> &Kv {
        &self.0.aliases
    }

    /// Returns the policies' bucket.
    #[must_use]
    pub fn policies(&self) -> &Kv {
        &self.0.policies
    }

    /// Returns the bucket of what each replica serves.
    #[must_use]
    pub fn replicas(&self) -> &Kv {
        &self.0.replicas
    }

    /// Counts messages sent to a subject. A count of 0 at the start makes the first message visible
    /// as a rise.
    pub(crate) fn count_sent(&self, messages: u64, subject: &str) {
        let attributes = [
            KeyValue::new(semconv::MESSAGING_SYSTEM, "nats"),
            KeyValue::new(
                semconv::MESSAGING_DESTINATION_TEMPLATE,
                events::family(subject).to_owned(),
            ),
        ];
        self.0.sent.add(messages, &attributes);
    }

    pub(crate) fn link(&self) -> &Link {
        &self.0.link
    }

    pub(crate) fn js(&self) -> &jetstream::Context {
        &self.0.js
    }

    pub(crate) fn stopper(&self) -> &Stopper {
        &self.0.stopper
    }

    pub(crate) fn connections(&self) -> watch::Receiver<u64> {
        self.0.connections.clone()
    }

    /// Returns whether NATS answers: `None`, or its absence.
    #[must_use]
    pub fn presence(&self) -> watch::Receiver<Option<Away>> {
        self.0.link.away.clone()
    }

    /// Runs work that needs NATS, for a moment and within the time of the current call.
    ///
    /// # Errors
    /// The work's; `Unavailable` if NATS does not answer in time. What the work has sent may still
    /// take effect.
    pub fn in_a_moment<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> impl Future<Output = Result<T>> {
        self.0.link.in_a_moment(work)
    }

    /// Says that something in the store has not reached NATS.
    pub fn leave_undone(&self) {
        self.0.undone.send_modify(|count| *count += 1);
    }

    pub(crate) fn undone(&self) -> watch::Receiver<u64> {
        self.0.undone.subscribe()
    }

    /// Checks that the server and JetStream answer now.
    ///
    /// # Errors
    /// `Unavailable` if one does not.
    pub async fn health(&self) -> Result<()> {
        if self.0.client.connection_state() != State::Connected {
            return Err(Error::unavailable("NATS is not connected"));
        }
        let account = self.0.js.query_account().await;
        account
            .map_err(|error| Error::unavailable("JetStream does not answer").with_source(error))?;
        Ok(())
    }

    /// Publishes an event in the current span's trace and waits until it is stored. Publishing the
    /// same event twice stores it once.
    ///
    /// # Errors
    /// `Unavailable` if it could not be stored in some seconds.
    pub async fn publish(&self, event: impl Into<Event>) -> Result<()> {
        self.publish_in(event, telemetry::current_traceparent().as_deref())
            .await
    }

    /// Like [`Bus::publish`], in the given trace.
    ///
    /// # Errors
    /// `Unavailable` if it could not be stored in some seconds.
    pub async fn publish_in(
        &self,
        event: impl Into<Event>,
        traceparent: Option<&str>,
    ) -> Result<()> {
        let event = event.into();
        let headers = event.headers(&self.source(), traceparent)?;
        self.send(event.kind().subject(), headers, event.body()?)
            .await?;
        tracing::debug!(
            event = event.kind().name(),
            about = event.about(),
            "published"
        );
        Ok(())
    }

    pub(crate) fn source(&self) -> String {
        format!("togi/{}", self.0.name)
    }

    /// Publishes a message until it is stored; returns its place in the stream. The headers should
    /// hold a `Nats-Msg-Id`.
    pub(crate) async fn send(
        &self,
        subject: String,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<u64> {
        if body.len() > events::MAX_BODY_BYTES {
            let message = format!("a message of {} bytes is too large: {subject}", body.len());
            return Err(Error::new(Class::InvalidArgument, message));
        }
        let template = subject.clone();
        let span = tracing::info_span!(
            "send",
            otel.kind = "producer",
            messaging.system = "nats",
            messaging.operation.name = "send",
            messaging.destination.name = template
        );
        let deadline = Instant::now() + PUBLISH_PATIENCE;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            let error = match self
                .send_once(&subject, &headers, &body)
                .instrument(span.clone())
                .await
            {
                Ok(sequence) => {
                    self.count_sent(1, &subject);
                    return Ok(sequence);
                }
                Err(error) => error,
            };
            let wait = backoff.step();
            if error.class() != Class::Unavailable || Instant::now() + wait > deadline {
                return Err(error);
            }
            if !self.0.stopper.wait(wait).await {
                return Err(error);
            }
        }
    }

    async fn send_once(&self, subject: &str, headers: &HeaderMap, body: &Bytes) -> Result<u64> {
        self.0.link.connected().await?;
        let publish =
            self.0
                .js
                .publish_with_headers(subject.to_owned(), headers.clone(), body.clone());
        let outcome = match publish.await {
            Ok(acknowledgement) => acknowledgement.await,
            Err(error) => Err(error),
        };
        let error = match outcome {
            Ok(stored) => return Ok(stored.sequence),
            Err(error) => error,
        };
        if error.kind() == PublishErrorKind::StreamNotFound {
            // JetStream's folder was wiped.
            streams::ensure(&self.0.js, self.0.config.replicas).await?;
        }
        let text = error.to_string();
        if text.contains("maximum bytes") || text.contains("insufficient") {
            let message = "the stream is full: old messages must expire or its limit be raised";
            return Err(Error::new(Class::ResourceExhausted, message).with_source(error));
        }
        Err(Error::unavailable("NATS did not store the message").with_source(error))
    }

    /// Answers a message of a consumer and waits for the server's confirmation.
    /// `Message::double_ack` is not used, because it succeeds even if no server received the
    /// acknowledgement.
    pub(crate) async fn answer(&self, reply: &Subject, answer: &str) -> Result<()> {
        self.0.link.connected().await?;
        let request = self
            .0
            .client
            .request(reply.clone(), Bytes::copy_from_slice(answer.as_bytes()));
        match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                Err(Error::unavailable("NATS did not take the answer").with_source(error))
            }
            Err(_) => Err(Error::unavailable(
                "NATS did not confirm the answer in time",
            )),
        }
    }

    /// Stores a job's newest progress over the one before.
    ///
    /// # Errors
    /// `Unavailable` if it could not be stored. The job can go on without it.
    pub async fn put_progress(&self, job: &JobId, body: &(impl Serialize + Sync)) -> Result<()> {
        let subject = events::progress_subject(job);
        let body = Bytes::from(serde_json::to_vec(body)?);
        self.send_once(&subject, &HeaderMap::new(), &body).await?;
        Ok(())
    }

    /// Returns a job's newest progress.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn progress(&self, job: &JobId) -> Result<Option<Bytes>> {
        let gone = "progress cannot be read";
        self.0.link.connected().await?;
        let stream = self.0.js.get_stream_no_info(events::PROGRESS_STREAM).await;
        let stream = stream.map_err(|error| Error::unavailable(gone).with_source(error))?;
        match stream
            .direct_get_last_for_subject(events::progress_subject(job))
            .await
        {
            Ok(message) => Ok(Some(message.payload)),
            Err(error) if error.kind() == jetstream::stream::DirectGetErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(Error::unavailable(gone).with_source(error)),
        }
    }
}
