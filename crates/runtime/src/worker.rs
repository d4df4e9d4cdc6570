//! The worker loop: pull a message, find its job, claim it, keep the lease, run the handler, write
//! the outcome, answer the message. A handler is a function from a job to an outcome and knows none
//! of this.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{self};
use futures::StreamExt as _;
use serde_json::Value;
use togi_common::JobId;
use tracing::Instrument as _;

use crate::bus::streams;
use crate::context::Context;
use crate::error::{Class, Error, Result};
use crate::events;
use crate::jobs::Jobs;
use crate::life::backoff::Backoff;
use crate::telemetry;
use crate::worker::claim::Decision;
use crate::worker::delivery::{Bare, Delivery, nak};
use crate::worker::slot::Slot;

mod attempt;
mod claim;
mod delivery;
mod handler;
pub mod lease;
mod slot;
pub use handler::{Admission, Claim, Handler, Outcome};

/// How long one pull waits at the server. A stopping worker waits for its last pull, so the wait is
/// short: the message of an abandoned pull would be lost until its lease runs out.
const PULL: Duration = Duration::from_secs(1);

/// The limits of a worker's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Jobs at the same time, at least one.
    pub slots: usize,
    /// Jobs after which the process stops; 0 for no limit.
    pub jobs: u64,
}

/// Works on jobs of the handler's kind until the stopper stops, and stops it at the limit of jobs.
/// It also restores jobs that NATS has lost. It returns after running jobs are handed back.
///
/// # Errors
/// Never while NATS or the store is away: the loop waits and logs that.
pub async fn serve<H: Handler>(context: Context, handler: Arc<H>, limits: Limits) -> Result<()> {
    let jobs = Jobs::new(&context.bus, &context.store);
    context.bus.count_sent(0, &events::dead_subject(H::KIND));
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

impl<H: Handler> Slot<H> {
    async fn run(self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let kind = H::KIND.name();
        let received = telemetry::meter()
            .u64_counter(crate::telemetry::semconv::MESSAGING_CONSUMED_MESSAGES)
            .build();
        while !self.context.stopper.is_stopped() {
            let error = match self.work(&mut backoff, &received).await {
                Ok(()) => continue,
                Err(error) => error,
            };
            // The consumer is opened again after any error, because the old one may stay silent.
            tracing::warn!(
                kind,
                error = error.chain(),
                "waiting for jobs; trying again"
            );
            backoff.wait(&self.context.stopper).await;
        }
    }

    /// Opens the consumer and works until something breaks or the stopper stops.
    async fn work(
        &self,
        backoff: &mut Backoff,
        received: &opentelemetry::metrics::Counter<u64>,
    ) -> Result<()> {
        let consumer = self.open().await?;
        while !self.context.stopper.is_stopped() {
            let since = Instant::now();
            let message = self.pull(&consumer).await?;
            backoff.reset();
            let Some(message) = message else { continue };
            received.add(
                1,
                &[opentelemetry::KeyValue::new(
                    crate::telemetry::semconv::MESSAGING_SYSTEM,
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
                // The message is not answered, so the server delivers it again after the lease.
                tracing::warn!(
                    place = delivery.place,
                    error = error.chain(),
                    "a job message was not settled"
                );
                match error.class() {
                    Class::Unavailable => return Err(error),
                    // No delivery repairs damaged bytes.
                    Class::DataLoss => {
                        self.bury::<()>(&delivery, &error).await?;
                    }
                    _ => {
                        let later = nak(Duration::from_secs(5));
                        self.jobs.bus().answer(&delivery.reply, &later).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn open(&self) -> Result<jetstream::consumer::PullConsumer> {
        let bus = self.jobs.bus();
        let kind = H::KIND.name();
        let config = pull::Config {
            durable_name: Some(events::consumer(H::KIND)),
            description: Some(format!("workers of {kind} jobs")),
            filter_subject: events::job_subject(H::KIND),
            ack_wait: bus.config().ack_wait(),
            // Attempts are counted in the job's record. After `max_deliver` the server would never
            // deliver the message again.
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

    /// Returns the next message, or `None` after [`PULL`].
    async fn pull(
        &self,
        consumer: &jetstream::consumer::PullConsumer,
    ) -> Result<Option<jetstream::Message>> {
        let gone = || Error::unavailable("jobs cannot be pulled");
        // A pull that is sent late, when nobody waits for it any more, would take a message away.
        self.jobs.bus().link().connected().await?;
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

    /// Handles a message to its end.
    async fn process(&self, delivery: &Delivery) -> Result<()> {
        let admitting = delivery.admission();
        let found = self.find(delivery).instrument(admitting.clone()).await?;
        let Some((id, bare)) = found else {
            return Ok(());
        };
        let claimed = self.claim(delivery, &id, bare).instrument(admitting);
        let Decision::Work(job) = claimed.await? else {
            return Ok(());
        };
        let span = tracing::info_span!("process", otel.kind = "consumer", otel.name = format!("process {}", H::KIND.name()),
            messaging.system = "nats", messaging.operation.name = "process",
            messaging.destination.name = events::job_subject(H::KIND),
            messaging.message.conversation_id = %id, job = %id, epoch = job.fence.0);
        let span = telemetry::span_with_parent(span, &job.traceparent);
        self.attempt(delivery, &id, *job).instrument(span).await?;
        self.count();
        Ok(())
    }

    /// Counts an attempt, and stops the process after the last one.
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

    /// Returns the job of a message, or the future job of a bare message. `None` if the message is
    /// settled.
    async fn find(&self, delivery: &Delivery) -> Result<Option<(JobId, Option<Bare>)>> {
        let message = &delivery.message;
        if !delivery.is_bare() {
            return match delivery.header("ce-subject").map(|id| id.parse()) {
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
        // Without a key the message itself is the key, so that a redelivery is the same job. The
        // key has the message's time, because a new stream counts from 1 again.
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

    /// Publishes a message that is no job as a dead letter with the reason, then acknowledges it.
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
