//! Follows the aliases. Events only make it quick: it also lists periodically, and needs no NATS.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _};

use crate::bus::reader::{EventStream, Start};
use crate::events::EventKind;
use crate::registry::aliases::{Alias, Aliases};

impl Aliases {
    /// Yields all aliases now, and again after each change: at once after an event, otherwise
    /// within the period. Works without NATS, waits for an absent store, and never ends.
    #[must_use]
    pub fn follow(&self, period: Duration) -> Pin<Box<dyn Stream<Item = Vec<Alias>> + Send>> {
        let following = Following {
            aliases: self.clone(),
            period,
            events: None,
            last: None,
        };
        futures::stream::unfold(following, |mut following| async move {
            let changed = following.next().await;
            Some((changed, following))
        })
        .boxed()
    }
}

struct Following {
    aliases: Aliases,
    period: Duration,
    events: Option<EventStream>,
    last: Option<Vec<Alias>>,
}

impl Following {
    async fn next(&mut self) -> Vec<Alias> {
        if self.last.is_some() {
            self.wait().await;
        }
        loop {
            // Subscribe before listing, so that no change in between is missed.
            self.listen().await;
            let last = self.last.as_deref().unwrap_or_default();
            match self.aliases.list_after(last).await {
                Ok(list) if self.last.as_ref() != Some(&list) => {
                    self.last = Some(list.clone());
                    return list;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(error = error.chain(), "aliases cannot be listed now");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            }
            self.wait().await;
        }
    }

    async fn listen(&mut self) {
        if self.events.is_some() {
            return;
        }
        let kinds = [EventKind::AdapterPromoted, EventKind::AdapterRolledBack];
        let opening = self.aliases.bus.events(&kinds, Start::New);
        // Without NATS, changes are found only by listing.
        if let Ok(Ok(events)) = tokio::time::timeout(Duration::from_millis(500), opening).await {
            self.events = Some(events);
        }
    }

    async fn wait(&mut self) {
        let Some(events) = &mut self.events else {
            return tokio::time::sleep(self.period.min(Duration::from_secs(5))).await;
        };
        let event = tokio::time::timeout(self.period, events.next()).await;
        if matches!(event, Ok(None)) {
            // The bus has stopped and delivers no more events; asking again at once would be a busy
            // loop.
            self.events = None;
            tokio::time::sleep(self.period).await;
        }
    }
}
