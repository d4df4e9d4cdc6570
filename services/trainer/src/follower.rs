//! Retraining by events: when a policy's data set has a new revision, its job is queued. The names in the store are the truth;
//! `dataset.ready` only makes it quick. A job's key is the policy, its version and the revision, so that events that come
//! twice, replicas that see the same one, and restarts all make the same job.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt as _;
use togi_proto::job::v1::{JobKind, JobState};
use togi_runtime::{
    Bus, Event, Result, Stopper, Store, bus::Start, events::EventKind, telemetry::span_with_parent,
};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{Instrument as _, info, info_span, warn};

use crate::{
    dataset,
    metrics::Metrics,
    policy::{self, Policies, Policy},
    queue::Queue,
};

/// Follows data sets for the policies.
pub struct Follower {
    /// The object store.
    pub store: Store,
    /// Where events come from.
    pub bus: Bus,
    /// The policies.
    pub policies: Policies,
    /// Where jobs go.
    pub queue: Queue,
    /// What is measured.
    pub metrics: Metrics,
    /// Time between two listings.
    pub period: Duration,
}

impl Follower {
    /// Follows until stopped. What goes wrong with one policy stops no other, and is tried again at the next listing.
    ///
    /// # Errors
    /// None but the stop before the first event.
    pub async fn run(self, stopper: Stopper) -> Result<()> {
        let mut events = match stopper
            .run(self.bus.events(&[EventKind::DatasetReady], Start::New))
            .await
        {
            Some(events) => events?,
            None => return Ok(()),
        };
        let mut period = interval(self.period);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Of each policy the revision that is done with, and what was said of one that failed: so that neither the store nor
        // the log hears the same thing at every listing.
        let mut done = BTreeMap::new();
        let mut failed = BTreeMap::new();
        loop {
            let ready = tokio::select! {
                () = stopper.stopped() => return Ok(()),
                event = events.next() => match event {
                    Some(received) => Some(received),
                    None => return Ok(()),
                },
                _ = period.tick() => None,
            };
            let (name, trace) = match &ready {
                Some(received) => match &received.event {
                    Event::DatasetReady(event) => (
                        Some(event.name.as_str()),
                        received.meta.traceparent.as_str(),
                    ),
                    _ => continue,
                },
                None => {
                    self.count_waiting().await;
                    (None, "")
                }
            };
            let Some(()) = stopper
                .run(self.look(name, trace, &mut done, &mut failed))
                .await
            else {
                return Ok(());
            };
        }
    }

    async fn look(
        &self,
        name: Option<&str>,
        trace: &str,
        done: &mut BTreeMap<(String, u64), u64>,
        failed: &mut BTreeMap<String, String>,
    ) {
        let policies = match self.policies.list().await {
            Ok(policies) => policies,
            Err(error) => {
                warn!(%error, "the policies cannot be listed now");
                return;
            }
        };
        for policy in policies
            .iter()
            .filter(|policy| name.is_none_or(|name| policy.body.dataset == name))
        {
            let key = (policy.body.name.clone(), policy.version);
            match self
                .follow(
                    policy,
                    trace,
                    done.get(&key).copied().unwrap_or(policy.seen),
                )
                .await
            {
                Ok(revision) => {
                    done.insert(key, revision);
                    failed.remove(&policy.body.name);
                }
                Err(error) => {
                    let text = error.to_string();
                    if failed
                        .insert(policy.body.name.clone(), text.clone())
                        .as_ref()
                        != Some(&text)
                    {
                        self.metrics.policy_job("failed");
                        warn!(
                            policy = policy.body.name,
                            error = text,
                            "the policy's job was not queued"
                        );
                    }
                }
            }
        }
    }

    /// Queues the job of the newest revision, if that is after `done`, and returns the revision that is done with.
    async fn follow(&self, policy: &Policy, trace: &str, done: u64) -> crate::error::Result<u64> {
        let Some((revision, named)) = dataset::newest(&self.store, &policy.body.dataset).await?
        else {
            return Ok(done);
        };
        if revision <= done {
            return Ok(done);
        }
        let Policy { body, version, .. } = policy;
        let key = format!("policy/{}/{version}/{revision}", body.name);
        let asked = policy::request(body, named.dataset.clone(), key);
        let trace = named.traceparent.as_deref().unwrap_or(trace);
        let span = info_span!(
            "retrain",
            policy = body.name,
            version,
            dataset = body.dataset,
            revision
        );
        let span = span_with_parent(span, trace);
        let accepted = self.queue.create(&asked).instrument(span).await?;
        self.metrics.policy_job("queued");
        let job = accepted.job.map(|job| job.id).unwrap_or_default();
        info!(
            policy = body.name,
            version, revision, job, "the policy's job is queued"
        );
        Ok(revision)
    }

    async fn count_waiting(&self) {
        if let Ok(jobs) = self.queue.jobs().list(JobKind::Train).await {
            let waiting = jobs
                .iter()
                .filter(|job| job.state() == JobState::Queued)
                .count();
            self.metrics.waiting(waiting as u64);
        }
    }
}
