//! Queries: one job, all of a kind, or one until it ends.

use std::pin::Pin;

use async_nats::jetstream::context::ConsumerInfoErrorKind;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use togi_common::{JobId, canonical};

use crate::error::{Class, Error, Result};
use crate::events;
use crate::job::{Job, Kind, State, Wait};
use crate::jobs::Jobs;
use crate::jobs::record::{Envelope, Record};
use crate::layout;

const NO_WORKER: &str = "none is connected";

impl Jobs {
    /// Returns a job, with its place in the queue and what it waits for; while NATS is away, what
    /// the store tells of it.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    pub async fn get(&self, id: &JobId) -> Result<Job> {
        match self.bus.in_a_moment(self.get_now(id)).await {
            Err(error) if error.class() == Class::Unavailable => {
                self.seen_by_store(id, &error).await
            }
            found => found,
        }
    }

    /// As [`Jobs::get`], with NATS.
    pub(super) async fn get_now(&self, id: &JobId) -> Result<Job> {
        let mut job = match self.record(id).await? {
            Some((record, _)) => record.job,
            None => self.known_to_store(id).await?,
        };
        if job.state == State::Queued {
            job.queue_position = self.queue_position(&job).await?;
            if is_unexplained(&job) {
                let wait = self.wait_for_worker(job.kind).await?;
                job.wait = wait.map(|reason| queued_wait(&job, reason));
            }
        }
        Ok(job)
    }

    /// Returns why no worker takes a job of this kind at once; `None` if one is idle.
    async fn wait_for_worker(&self, kind: Kind) -> Result<Option<String>> {
        let gone = "the workers cannot be counted";
        let stream = self.bus.js().get_stream_no_info(events::JOBS_STREAM).await;
        let stream = stream.map_err(|error| Error::unavailable(gone).with_source(error))?;
        let info = match stream.consumer_info(events::consumer(kind)).await {
            Ok(info) => info,
            Err(error) => match error.kind() {
                ConsumerInfoErrorKind::NotFound | ConsumerInfoErrorKind::StreamNotFound => {
                    return Ok(Some(NO_WORKER.to_owned()));
                }
                _ => return Err(Error::unavailable(gone).with_source(error)),
            },
        };
        Ok(match (info.num_waiting, info.num_ack_pending) {
            (0, 0) => Some(NO_WORKER.to_owned()),
            (0, 1) => Some("the only one that is connected works on another job".to_owned()),
            (0, busy) => Some(format!("{busy} are connected and work on other jobs")),
            _ => None,
        })
    }

    /// Returns a job without its place in the queue; `None` if it is unknown.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn find(&self, id: &JobId) -> Result<Option<Job>> {
        if let Some((record, _)) = self.record(id).await? {
            return Ok(Some(record.job));
        }
        match self.known_to_store(id).await {
            Ok(job) => Ok(Some(job)),
            Err(error) if error.class() == Class::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the job from the store, for a job without a record in the bucket.
    pub(super) async fn known_to_store(&self, id: &JobId) -> Result<Job> {
        if let Some(finished) = self.final_record(id).await? {
            return Ok(finished);
        }
        match self
            .store
            .get_json::<Envelope>(&layout::job_request(id))
            .await
        {
            Ok(envelope) => envelope.to_job(id),
            Err(error) if error.class() == Class::NotFound => {
                Err(Error::not_found(format!("there is no job \"{id}\"")).with_field("job"))
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the job's request as proto3 JSON.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    pub async fn request(&self, id: &JobId) -> Result<Bytes> {
        match self
            .store
            .get_json::<Envelope>(&layout::job_request(id))
            .await
        {
            Ok(envelope) => Ok(canonical::json(&envelope.request)?.into()),
            Err(error) if error.class() == Class::NotFound => {
                Err(Error::not_found(format!("there is no job \"{id}\"")).with_field("job"))
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the jobs of a kind, newest first; while NATS is away, what the store tells of them.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list(&self, kind: Kind) -> Result<Vec<Job>> {
        let mut jobs = match self.bus.in_a_moment(self.list_now(kind)).await {
            Err(error) if error.class() == Class::Unavailable => {
                self.listed_by_store(kind, &error).await?
            }
            listed => listed?,
        };
        jobs.sort_by(|a, b| {
            b.create_time
                .cmp(&a.create_time)
                .then_with(|| a.id.cmp(&b.id))
        });
        let queued = jobs.iter().filter(|job| job.state == State::Queued).count();
        let mut position = u32::try_from(queued).unwrap_or(u32::MAX);
        for job in &mut jobs {
            if job.state == State::Queued {
                position = position.saturating_sub(1);
                job.queue_position = position;
            }
        }
        Ok(jobs)
    }

    async fn list_now(&self, kind: Kind) -> Result<Vec<Job>> {
        let records = self.records().await?.into_iter();
        let mut jobs: Vec<Job> = records.map(|(record, _)| record.job).collect();
        jobs.retain(|job| job.kind == kind);
        if jobs.iter().any(is_unexplained)
            && let Some(reason) = self.wait_for_worker(kind).await?
        {
            for job in jobs.iter_mut().filter(|job| is_unexplained(job)) {
                job.wait = Some(queued_wait(job, reason.clone()));
            }
        }
        Ok(jobs)
    }

    /// Returns how many queued jobs of the same kind were accepted before this one.
    async fn queue_position(&self, job: &Job) -> Result<u32> {
        let own = (job.create_time, &job.id);
        let records = self.records().await?;
        let before = records.iter().filter(|(record, _)| {
            let other = &record.job;
            other.kind == job.kind
                && other.state == State::Queued
                && (other.create_time, &other.id) < own
        });
        Ok(u32::try_from(before.count()).unwrap_or(u32::MAX))
    }

    /// Returns a job's record and then every change, until it has ended or the bus is stopped.
    /// An absence of NATS and its end are changes. Changes carry no place in the queue.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    pub async fn watch(&self, id: &JobId) -> Result<Pin<Box<dyn Stream<Item = Job> + Send>>> {
        let first = self.get(id).await?;
        if first.state.is_final() {
            return Ok(futures::stream::iter([first]).boxed());
        }
        let changes = self
            .bus
            .jobs()
            .watch(id.as_str())
            .filter_map(|entry| async move {
                let record = Record::from_bytes(&entry.value?).ok()?;
                Some(record.job)
            });
        let changes = futures::stream::select(changes.boxed(), self.seen(id).boxed());
        let changes = changes.take_until(self.bus.stopper().stopped());
        // The watch's first entry repeats the present record, so equal records are left out.
        let news = changes.scan(first.clone(), |last, job| {
            let new = Job {
                queue_position: last.queue_position,
                ..job.clone()
            } != *last;
            if new {
                *last = job.clone();
            }
            async move { Some(new.then_some(job)) }
        });
        let news = news.filter_map(|job| async move { job });
        let news = EndAfter {
            inner: news.boxed(),
            ended: false,
        };
        Ok(futures::stream::iter([first]).chain(news).boxed())
    }

    /// Yields the job whenever NATS goes away or comes back.
    fn seen(&self, id: &JobId) -> impl Stream<Item = Job> + Send + use<> {
        let mut presence = self.bus.presence();
        presence.mark_unchanged();
        let state = (self.clone(), id.clone(), presence);
        futures::stream::unfold(state, |(jobs, id, mut presence)| async move {
            presence.changed().await.ok()?;
            let job = jobs.get(&id).await.ok();
            Some((job, (jobs, id, presence)))
        })
        .filter_map(|job| async move { job })
    }

    pub(super) async fn records(&self) -> Result<Vec<(Record, u64)>> {
        let mut records = Vec::new();
        for entry in self.bus.jobs().entries().await? {
            let Some(value) = entry.value else { continue };
            match Record::from_bytes(&value) {
                Ok(record) => records.push((record, entry.revision)),
                Err(error) => {
                    tracing::warn!(job = entry.key, error = error.chain(), "not a job's record")
                }
            }
        }
        Ok(records)
    }
}

/// Whether a job waits, and its record does not say for what.
fn is_unexplained(job: &Job) -> bool {
    job.state == State::Queued && job.wait.is_none()
}

fn queued_wait(job: &Job, reason: String) -> Wait {
    Wait {
        part: "a worker".to_owned(),
        reason,
        since: job.create_time,
    }
}

/// Ends after the first final record.
struct EndAfter<S> {
    inner: S,
    ended: bool,
}

impl<S: Stream<Item = Job> + Unpin> Stream for EndAfter<S> {
    type Item = Job;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Job>> {
        if self.ended {
            return std::task::Poll::Ready(None);
        }
        let next = self.inner.poll_next_unpin(cx);
        if let std::task::Poll::Ready(Some(job)) = &next {
            self.ended = job.state.is_final();
        }
        next
    }
}
