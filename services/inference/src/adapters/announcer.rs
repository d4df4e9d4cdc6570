//! Announces what this replica serves: an event for each adapter that was loaded or refused, and
//! the replica's entry in `togi_replicas`. While the bus is down, news waits and serving continues.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use togi_common::{AliasName, Generation};
use togi_runtime::life::backoff::Backoff;
use togi_runtime::registry::replicas;
use togi_runtime::{Bus, Event, Stopper};
use tokio::sync::{mpsc, watch};

use crate::adapters::mismatch::Gauge;
use crate::adapters::served::{Refusal, Served, Serving, Shelf};
use crate::rpc::events;
use crate::served_adapter::ServedAdapter;

/// Delays between attempts to publish an event.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(2));

/// A change to an alias on this replica.
#[derive(Debug, Clone)]
pub(crate) enum News {
    /// The alias now serves a generation.
    Loaded {
        alias: AliasName,
        generation: Generation,
        /// The adapter, if its base has another precision here than in training. The effect is
        /// measured before the event is published.
        mismatched: Option<Arc<ServedAdapter>>,
        traceparent: Option<String>,
    },
    /// A generation was refused.
    Rejected {
        alias: AliasName,
        generation: Generation,
        reason: String,
        traceparent: Option<String>,
    },
}

/// A replica's entry in `togi_replicas`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaEntry {
    /// The replica's name.
    pub replica: String,
    /// The base's name.
    pub base: String,
    /// The base's digest.
    pub base_digest: String,
    /// The generation that each alias serves.
    pub adapters: BTreeMap<AliasName, Generation>,
    /// Why a declared generation is not served, by alias.
    pub rejected: BTreeMap<AliasName, String>,
}

/// Publishes the news and keeps the entry.
pub(crate) struct Announcer {
    pub(crate) bus: Bus,
    pub(crate) replica: String,
    pub(crate) base: String,
    pub(crate) base_digest: String,
    pub(crate) gauge: Gauge,
}

impl Announcer {
    /// Runs until the stop, then removes the entry.
    pub(crate) async fn run(
        self,
        mut news: mpsc::Receiver<News>,
        shelf: &Arc<Shelf>,
        stopper: &Stopper,
    ) -> togi_runtime::Result<()> {
        let mut served = shelf.watch();
        let (entries, entry) = watch::channel(self.entry(&served.borrow_and_update()));
        let announce = replicas::announce(
            self.bus.clone(),
            self.replica.clone(),
            entry,
            stopper.clone(),
        );
        let renew = async {
            // `shelf` owns the sender, so that only the stop ends this loop.
            while let Some(Ok(())) = stopper.run(served.changed()).await {
                entries.send_replace(self.entry(&served.borrow_and_update()));
            }
        };
        let publish = async {
            while let Some(Some(news)) = stopper.run(news.recv()).await {
                // Measuring a mismatch here delays only the news, which stays in order.
                let Some((event, traceparent)) = stopper.run(self.event(news)).await else {
                    return;
                };
                self.publish(event, traceparent, stopper).await;
            }
        };
        let (announced, (), ()) = tokio::join!(announce, renew, publish);
        announced
    }

    fn entry(&self, served: &Served) -> ReplicaEntry {
        let generation = |(alias, serving): (&AliasName, &Serving)| {
            (alias.clone(), serving.adapter.generation())
        };
        let reason =
            |(alias, refusal): (&AliasName, &Refusal)| (alias.clone(), refusal.reason.clone());
        ReplicaEntry {
            replica: self.replica.clone(),
            base: self.base.clone(),
            base_digest: self.base_digest.clone(),
            adapters: served.aliases.iter().map(generation).collect(),
            rejected: served.refused.iter().map(reason).collect(),
        }
    }

    /// Returns the event and the trace that it belongs to.
    async fn event(&self, news: News) -> (Event, Option<String>) {
        let replica = self.replica.clone();
        match news {
            News::Loaded {
                alias,
                generation,
                mismatched,
                traceparent,
            } => {
                let mismatch = match mismatched {
                    Some(adapter) => Some(self.gauge.measure(&adapter).await),
                    None => None,
                };
                let event = events::loaded(alias, generation, replica, mismatch);
                (event, traceparent)
            }
            News::Rejected {
                alias,
                generation,
                reason,
                traceparent,
            } => {
                let event = events::rejected(alias, generation, replica, reason);
                (event, traceparent)
            }
        }
    }

    /// Publishes an event, with retries until it is stored or the stop.
    async fn publish(&self, event: Event, traceparent: Option<String>, stopper: &Stopper) {
        let mut backoff = BACKOFF;
        while let Some(Err(error)) = stopper
            .run(self.bus.publish_in(event.clone(), traceparent.as_deref()))
            .await
        {
            if !error.class().retryable() {
                tracing::warn!(error = error.chain(), "an event cannot be published");
                return;
            }
            tracing::debug!(error = error.chain(), "an event waits for the bus");
            backoff.wait(stopper).await;
        }
    }
}
