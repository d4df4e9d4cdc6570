//! Queues a policy's job when its time comes. The store is the truth; events only make it quick.
//! [`crate::policies::retraining`] decides what to train.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use togi_runtime::bus::reader::Start;
use togi_runtime::events::EventKind;
use togi_runtime::jobs::{Kind, State};
use togi_runtime::telemetry::span_with_parent;
use togi_runtime::{Bus, Event, Result, Stopper};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{Instrument as _, info, info_span, warn};

use crate::metrics::Metrics;
use crate::policies::policy::{Policies, Policy};
use crate::policies::retraining::{Retraining, Round};
use crate::queue::Queue;

/// Events that may let a policy train: a revision, and the end of a job that it waited for.
const NEWS: [EventKind; 4] = [
    EventKind::DatasetReady,
    EventKind::JobSucceeded,
    EventKind::JobFailed,
    EventKind::JobCancelled,
];

/// Follows data sets for the policies.
pub(crate) struct Follower {
    /// Where events come from.
    pub bus: Bus,
    /// The policies.
    pub policies: Policies,
    /// Decides what is trained next.
    pub retraining: Retraining,
    /// Where jobs go.
    pub queue: Queue,
    /// What is measured.
    pub metrics: Metrics,
    /// Time between two listings.
    pub period: Duration,
}

/// The last problem of each policy, so that it is logged once and not at every listing.
type Reported = BTreeMap<String, String>;

impl Follower {
    /// Follows until stopped. A policy's failure stops no other policy, and is tried again at the
    /// next listing.
    ///
    /// # Errors
    /// None but the stop before the first event.
    pub(crate) async fn run(self, stopper: Stopper) -> Result<()> {
        let mut events = match stopper.run(self.bus.events(&NEWS, Start::New)).await {
            Some(events) => events?,
            None => return Ok(()),
        };
        let mut period = interval(self.period);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reported = Reported::new();
        loop {
            let news = tokio::select! {
                () = stopper.stopped() => return Ok(()),
                event = events.next() => match event {
                    Some(received) => Some(received.event),
                    None => return Ok(()),
                },
                _ = period.tick() => None,
            };
            let dataset = match &news {
                Some(Event::DatasetReady(ready)) => Some(ready.name.as_str()),
                Some(event) if !is_training(event) => continue,
                Some(_) => None,
                None => {
                    self.count_waiting().await;
                    None
                }
            };
            let Some(()) = stopper.run(self.look(dataset, &mut reported)).await else {
                return Ok(());
            };
        }
    }

    /// Follows every policy, or those of one data set.
    async fn look(&self, dataset: Option<&str>, reported: &mut Reported) {
        let policies = match self.policies.list().await {
            Ok(policies) => policies,
            Err(error) => {
                warn!(%error, "the policies cannot be listed now");
                return;
            }
        };
        let concerned =
            |policy: &&Policy| dataset.is_none_or(|dataset| policy.body.dataset == dataset);
        for policy in policies.iter().filter(concerned) {
            let name = &policy.body.name;
            let wrong = match self.follow(policy).await {
                Ok(wrong) => wrong,
                Err(error) => Some(error.to_string()),
            };
            let Some(wrong) = wrong else {
                reported.remove(name);
                continue;
            };
            if reported.get(name) != Some(&wrong) {
                self.metrics.policy_job("failed");
                warn!(
                    policy = name,
                    error = wrong,
                    "a revision of the policy's data set is not trained"
                );
                reported.insert(name.clone(), wrong);
            }
        }
    }

    /// Queues the policy's next job. Returns the problems of revisions that cannot be trained.
    async fn follow(&self, policy: &Policy) -> crate::error::Result<Option<String>> {
        let Round { next, unfit } = self.retraining.round(policy, Timestamp::now()).await?;
        if let Some(next) = next {
            let (revision, version) = (next.revision, policy.version);
            let span = info_span!(
                "retrain",
                policy = policy.body.name,
                version,
                dataset = policy.body.dataset,
                revision
            );
            let span = span_with_parent(span, &next.traceparent);
            self.queue
                .submit(&next.job, &next.checked.request)
                .instrument(span)
                .await?;
            self.metrics.policy_job("queued");
            let job = next.job;
            info!(
                policy = policy.body.name,
                version, revision, %job, "the policy's job is queued"
            );
        }
        let wrong = unfit
            .iter()
            .map(|(revision, error)| format!("revision {revision}: {error}"));
        let wrong = wrong.collect::<Vec<_>>().join("; ");
        Ok(Some(wrong).filter(|wrong| !wrong.is_empty()))
    }

    async fn count_waiting(&self) {
        if let Ok(jobs) = self.queue.jobs().list(Kind::Train).await {
            let waiting = jobs.iter().filter(|job| job.state == State::Queued).count();
            self.metrics.waiting(waiting as u64);
        }
    }
}

/// Whether an event is a training job's end.
fn is_training(event: &Event) -> bool {
    let kind = match event {
        Event::JobSucceeded(ended) => &ended.kind,
        Event::JobFailed(ended) => &ended.kind,
        Event::JobCancelled(ended) => &ended.kind,
        _ => return false,
    };
    kind == Kind::Train.name()
}
