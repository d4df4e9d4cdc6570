//! Announces what this replica serves: an event for each adapter that was loaded or refused, and
//! the replica's entry in `togi_replicas`. While the bus is away, news wait and serving continues.

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

/// Waits between two attempts to publish an event.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(2));

/// Something that happened to an alias here.
#[derive(Debug, Clone)]
pub(crate) enum News {
    /// It serves a generation now.
    Loaded {
        alias: AliasName,
        generation: Generation,
        /// The adapter, if its base has another precision here than in training: the effect is
        /// measured before the event.
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

/// A replica's entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaEntry {
    /// The replica.
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
    /// Works until the stop; then removes the entry.
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
            // The sender lives in `shelf`.
            while let Some(Ok(())) = stopper.run(served.changed()).await {
                entries.send_replace(self.entry(&served.borrow_and_update()));
            }
        };
        let publish = async {
            while let Some(Some(news)) = stopper.run(news.recv()).await {
                // A mismatch is measured here, so that only news wait for it, in their order.
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

    /// Returns the event of the news, and the trace that it belongs to.
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

    /// Publishes until it is stored, or the stop.
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
