//! Follows the registry: lists the store's aliases at the start, after each event and periodically,
//! so that the declared set is right even if every event is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use togi_runtime::registry::aliases::{Alias, Aliases};
use togi_runtime::{Bus, Stopper, Store};
use tokio::sync::watch;

use super::plan::{Declaration, Declared};

/// Keeps the declared set up to date.
pub(crate) struct Follower {
    pub(crate) store: Store,
    pub(crate) bus: Bus,
    pub(crate) stopper: Stopper,
    pub(crate) period: Duration,
    /// `None` until the store has been read once.
    pub(crate) declared: Arc<watch::Sender<Option<Declared>>>,
}

impl Follower {
    /// Runs until the stop.
    pub(crate) async fn run(self) {
        if self.bus.health().await.is_err() {
            tracing::warn!("the bus is not there; aliases are followed by listing the store alone");
        }
        let mut lists = Aliases::new(&self.bus, &self.store).follow(self.period);
        while let Some(Some(list)) = self.stopper.run(lists.next()).await {
            self.declared
                .send_modify(|declared| *declared = Some(next(declared.as_ref(), list)));
        }
    }
}

/// Returns the declared set after a listing. A known revision keeps the time of its first reading.
fn next(known: Option<&Declared>, list: Vec<Alias>) -> Declared {
    let now = Instant::now();
    let declaration = |alias: Alias| {
        let before = known.and_then(|known| known.get(alias.name()));
        let heard = before
            .filter(|before| before.revision == alias.revision)
            .map_or(now, |before| before.heard);
        let Alias { revision, content } = alias;
        let declaration = Declaration {
            generation: content.generation,
            revision,
            base_mismatch: content.base_mismatch,
            traceparent: content.traceparent,
            heard,
        };
        (content.alias, declaration)
    };
    list.into_iter().map(declaration).collect()
}
