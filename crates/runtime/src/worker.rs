//! The one worker loop: pull a message, find its job, claim it, keep the lease, let the handler work, write down how it ended,
//! answer the message. A handler is a function from a job to an outcome and knows none of this.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::{
    Subject,
    jetstream::{self, AckKind, consumer::pull},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::Value;
use togi_proto::job::v1::{Job, JobKind};
use tracing::Instrument as _;

use crate::{
    Class, Context, Error, JobId, Jobs, Result, Stopper,
    events::{self, kind_name},
    lease::Lease,
    streams, telemetry,
};

mod attempt;
mod claim;

/// How long one pull waits at the server. Short, because a pull that is given up may still be answered with a message that nobody
/// sees until its lease runs out; so a stopping worker waits for its last pull instead.
const PULL: Duration = Duration::from_secs(1);

/// Does the work of one kind of job.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The kind.
    const KIND: JobKind;

    /// Does a job. It may run twice, here or elsewhere: the same work must give the same objects. It watches `claim.lease` (lost,
    /// cancelled) and `claim.stopper` itself, and calls `claim.lease.check()` before it commits anything.
    async fn handle(&self, claim: Claim) -> Outcome;

    /// Checks a request that came as a bare NATS message (proto3 JSON, no `ce-*` headers) and returns it as the service would have
    /// submitted it. An error that is not retryable sends the message to the dead letters with its reason. The default takes any
    /// JSON object.
    ///
    /// # Errors
    /// What the service would answer to the same request over gRPC.
    async fn admit(&self, request: Bytes) -> Result<Admission> {
        Admission::from_json(&request)
    }
}

/// A request that was let in.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// The caller's key; empty if there is none.
    pub idempotency_key: String,
    /// The request as proto3 JSON.
    pub request: Value,
}

impl Admission {
    /// Returns the admission of any JSON object, with its `idempotencyKey`.
    ///
    /// # Errors
    /// `InvalidArgument` if it is no JSON object.
    pub fn from_json(request: &[u8]) -> Result<Self> {
        let request: Value = serde_json::from_slice(request)?;
        let Value::Object(fields) = &request else {
            return Err(Error::new(
                Class::InvalidArgument,
                "a job's request must be a JSON object",
            ));
        };
        let key = fields
            .get("idempotencyKey")
            .or_else(|| fields.get("idempotency_key"));
        let key = key.and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Self {
            idempotency_key: key,
            request,
        })
    }
}

/// A job that is ours for now.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Its record after the claim.
    pub job: Job,
    /// What was asked: proto3 JSON.
    pub request: Bytes,
    /// How long it is ours, and the fencing token.
    pub lease: Lease,
    /// Stops when the process should end: hand the job back then.
    pub stopper: Stopper,
}

impl Claim {
    /// Returns the job's id.
    #[must_use]
    pub fn id(&self) -> &JobId {
        self.lease.job()
    }
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    /// The result is committed in the store.
    Succeeded {
        /// A data set's digest or a generation.
        result: String,
    },
    /// The result is committed in the store, and a gate does not let it be used: an outcome like another, with nothing to repeat.
    Refused {
        /// As for [`Outcome::Succeeded`].
        result: String,
        /// Why, in a sentence.
        reason: String,
    },
    /// It did not work. A retryable class is tried again, five times in all; any other is final.
    Failed(Error),
    /// We must stop; somebody else goes on. This is no failed attempt.
    HandBack,
    /// Somebody asked for the end, and it is done.
    Cancelled,
    /// Nobody needs it any more, for this reason; nobody asked for its end.
    Withdrawn(Error),
    /// The job is not ours any more.
    LeaseLost,
}

impl From<Error> for Outcome {
    /// An error that only says why the work stopped is that outcome, for a handler that uses `?` throughout.
    fn from(error: Error) -> Self {
        match error.class() {
            Class::Cancelled => Outcome::Cancelled,
            Class::Aborted => Outcome::LeaseLost,
            _ => Outcome::Failed(error),
        }
    }
}

/// How much a process works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Jobs at the same time, at least one.
    pub slots: usize,
    /// Jobs after whose end the process stops; 0: never.
    pub jobs: u64,
}

/// Works on jobs of the handler's kind until the stopper stops, or stops it itself at its limit; makes again what of them NATS has
/// lost. Returns after the running jobs were handed back.
///
/// # Errors
/// Never for what passes: the loop waits for NATS and the store and says so.
pub async fn serve<H: Handler>(context: Context, handler: Arc<H>, limits: Limits) -> Result<()> {
    let jobs = Jobs::new(&context.bus, &context.store);
    let reconcile = jobs.clone().keep(H::KIND, context.stopper.clone());
    let left = (limits.jobs > 0).then(|| Arc::new(AtomicU64::new(limits.jobs)));
    let slots = (0..limits.slots.max(1)).map(|_| {
        let slot = Slot {
            context: context.clone(),
            jobs: jobs.clone(),
            handler: handler.clone(),
            left: left.clone(),
        };
        slot.run()
    });
    let ((), reconciled) = tokio::join!(
        async {
            futures::future::join_all(slots).await;
        },
        reconcile
    );
    reconciled
}

/// One place for a job.
struct Slot<H> {
    context: Context,
    jobs: Jobs,
    handler: Arc<H>,
    /// Jobs until the process stops, of all slots; none if it goes on.
    left: Option<Arc<AtomicU64>>,
}

/// A message and how to answer it.
struct Delivery {
    message: jetstream::Message,
    reply: Subject,
    /// Its place in the stream.
    place: u64,
    delivered: i64,
    /// Not later than the server's own start of the lease.
    since: Instant,
}

impl<H: Handler> Slot<H> {
    async fn run(self) {
        let mut delay = Duration::from_millis(100);
        let kind = kind_name(H::KIND);
        let received = telemetry::meter()
            .u64_counter(crate::semconv::MESSAGING_CONSUMED_MESSAGES)
            .build();
        while !self.context.stopper.is_stopped() {
            let error = match self.work(&mut delay, &received).await {
                Ok(()) => continue,
                Err(error) => error,
            };
            // The consumer is opened anew whatever the error was: an old one may be silent for ever.
            tracing::warn!(
                kind,
                error = error.chain(),
                "waiting for jobs; trying again"
            );
            self.context.stopper.wait(delay).await;
            delay = (delay * 2).min(Duration::from_secs(5));
        }
    }

    /// Opens the consumer and works until something breaks or the stopper stops.
    async fn work(
        &self,
        delay: &mut Duration,
        received: &opentelemetry::metrics::Counter<u64>,
    ) -> Result<()> {
        let consumer = self.open().await?;
        while !self.context.stopper.is_stopped() {
            let since = Instant::now();
            let message = self.pull(&consumer).await?;
            *delay = Duration::from_millis(100);
            let Some(message) = message else { continue };
            received.add(
                1,
                &[opentelemetry::KeyValue::new(
                    crate::semconv::MESSAGING_SYSTEM,
                    "nats",
                )],
            );
            let Some(delivery) = Delivery::new(message, since) else {
                continue;
            };
            if self.context.stopper.is_stopped() {
                return self.jobs.bus().answer(&delivery.reply, "-NAK").await;
            }
            let result = self.process(&delivery).await;
            if let Err(error) = result {
                // Not settled: the message comes again when its lease has run out, and nothing is lost.
                tracing::warn!(
                    place = delivery.place,
                    error = error.chain(),
                    "a job message was not settled"
                );
                if error.class() == Class::Unavailable {
                    return Err(error);
                }
                self.jobs
                    .bus()
                    .answer(&delivery.reply, &nak(Duration::from_secs(5)))
                    .await?;
            }
        }
        Ok(())
    }

    async fn open(&self) -> Result<jetstream::consumer::PullConsumer> {
        let bus = self.jobs.bus();
        let kind = kind_name(H::KIND);
        let config = pull::Config {
            durable_name: Some(format!("togi-{kind}")),
            description: Some(format!("workers of {kind} jobs")),
            filter_subject: events::job_subject(H::KIND),
            ack_wait: bus.config().ack_wait(),
            // Attempts are counted in the job's record: after `max_deliver` a message would stay for ever, seen by nobody.
            max_deliver: -1,
            max_ack_pending: 4096,
            ..pull::Config::default()
        };
        streams::ensure(bus.js(), bus.config().replicas).await?;
        let opened = bus
            .js()
            .create_consumer_on_stream(config, events::JOBS_STREAM)
            .await;
        opened.map_err(|error| {
            Error::unavailable("the job consumer cannot be opened").with_source(error)
        })
    }

    /// Returns the next message, or nothing after a while.
    async fn pull(
        &self,
        consumer: &jetstream::consumer::PullConsumer,
    ) -> Result<Option<jetstream::Message>> {
        let gone = || Error::unavailable("jobs cannot be pulled");
        let pull = async {
            let batch = consumer
                .batch()
                .max_messages(1)
                .expires(PULL)
                .messages()
                .await;
            let mut batch = batch.map_err(|error| gone().with_source(error))?;
            match batch.next().await {
                Some(Ok(message)) => Ok(Some(message)),
                Some(Err(error)) => Err(gone().with_source(error)),
                None => Ok(None),
            }
        };
        tokio::time::timeout(PULL + Duration::from_secs(4), pull)
            .await
            .unwrap_or_else(|_| Err(gone()))
    }

    /// Does what a message asks for, to its end.
    async fn process(&self, delivery: &Delivery) -> Result<()> {
        let admitting = delivery.admission();
        let found = self.find(delivery).instrument(admitting.clone()).await?;
        let Some((id, bare)) = found else {
            return Ok(());
        };
        let claimed = self.claim(delivery, &id, bare).instrument(admitting);
        let claim::Decision::Work(job) = claimed.await? else {
            return Ok(());
        };
        let span = tracing::info_span!("process", otel.kind = "consumer", otel.name = format!("process {}", kind_name(H::KIND)),
            messaging.system = "nats", messaging.operation.name = "process",
            messaging.destination.name = events::job_subject(H::KIND),
            messaging.message.conversation_id = %id, job = %id, epoch = job.epoch);
        let span = telemetry::span_with_parent(span, &job.traceparent);
        self.attempt(delivery, &id, *job).instrument(span).await?;
        self.count();
        Ok(())
    }

    /// Stops the process after the last of its jobs.
    fn count(&self) {
        let Some(left) = &self.left else { return };
        let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            Some(left.saturating_sub(1))
        });
        if before.is_ok_and(|before| before <= 1) {
            tracing::info!("the process has worked on as many jobs as it should; it stops");
            self.context.stopper.stop();
        }
    }

    /// Returns the job that a message names, or that a bare one shall become. `None` if the message was settled here.
    async fn find(&self, delivery: &Delivery) -> Result<Option<(JobId, Option<Bare>)>> {
        let message = &delivery.message;
        if !delivery.is_bare() {
            return match delivery.header("ce-subject").map(|id| JobId::parse(&id)) {
                Some(Ok(id)) => Ok(Some((id, None))),
                _ => {
                    let error = Error::invalid("ce-subject", "the message names no job");
                    self.bury(delivery, &error).await
                }
            };
        }
        let admitted = match self.handler.admit(message.payload.clone()).await {
            Ok(admitted) => admitted,
            Err(error) if error.class().retryable() => return Err(error),
            Err(error) => return self.bury(delivery, &error).await,
        };
        // Without a key the message itself is the key: delivered again it is the same job. Its time is in it, because a stream
        // that was made anew counts from 1 again.
        let published = message
            .info()
            .map(|info| info.published.to_string())
            .unwrap_or_default();
        let is_key = admitted.idempotency_key.is_empty();
        let key = match is_key {
            true => format!("message {} of {published}", delivery.place),
            false => admitted.idempotency_key,
        };
        let id = crate::jobs::job_id(H::KIND, &key)?;
        let request = admitted.request;
        Ok(Some((id, Some(Bare { request, is_key }))))
    }

    /// Nothing is thrown away: what is no job goes to the dead letters, with the reason, before it is acknowledged.
    async fn bury<T>(&self, delivery: &Delivery, error: &Error) -> Result<Option<T>> {
        let about = format!("message {} {:?}", delivery.place, delivery.message.payload);
        let body = String::from_utf8_lossy(&delivery.message.payload);
        let cut: String = body.chars().take(8192).collect();
        self.jobs
            .bury(H::KIND, &about, Value::String(cut), Some(error))
            .await?;
        tracing::warn!(
            place = delivery.place,
            error = error.chain(),
            "a message is no job"
        );
        self.jobs.bus().answer(&delivery.reply, "+ACK").await?;
        Ok(None)
    }
}

/// What a bare message asks for, as its names are meant now.
struct Bare {
    request: Value,
    /// Whether the message itself is the job's key.
    is_key: bool,
}

impl Delivery {
    fn new(message: jetstream::Message, since: Instant) -> Option<Self> {
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

    fn header(&self, name: &str) -> Option<String> {
        let headers = self.message.headers.as_ref()?;
        events::header(headers, name).map(|value| value.to_string())
    }

    /// Whether it came from a plain NATS client: it is a request, and names no job.
    fn is_bare(&self) -> bool {
        self.header("ce-type").is_none()
    }

    /// The span in which a bare message becomes a job: of the sender's trace, or the beginning of one. A job has its own already.
    fn admission(&self) -> tracing::Span {
        if !self.is_bare() {
            return tracing::Span::none();
        }
        let span = tracing::info_span!("admit", otel.kind = "consumer", place = self.place);
        let trace = self.header(telemetry::TRACEPARENT).unwrap_or_default();
        telemetry::span_with_parent(span, &trace)
    }
}

/// "Not now, but after this time."
fn nak(delay: Duration) -> String {
    let payload: Bytes = AckKind::Nak(Some(delay)).into();
    String::from_utf8_lossy(&payload).into_owned()
}
