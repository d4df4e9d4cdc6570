//! Follows the aliases. Events only make it quick: it also lists periodically, and needs no NATS.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use futures::{FutureExt as _, Stream, StreamExt as _};
use togi_common::AliasName;
use tokio::time::Instant;

use crate::bus::reader::{EventStream, Received, Start};
use crate::events::{Event, EventKind};
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
            listed: Instant::now(),
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
    /// When all aliases were last listed.
    listed: Instant,
}

/// The aliases to read again.
enum Changed {
    /// Those that events named, with their revisions.
    Named(BTreeMap<AliasName, u64>),
    All,
}

impl Following {
    async fn next(&mut self) -> Vec<Alias> {
        let mut changed = match self.last {
            Some(_) => self.wait().await,
            None => Changed::All,
        };
        loop {
            let list = match changed {
                Changed::Named(named) => self.read(named).await,
                Changed::All => None,
            };
            let list = match list {
                Some(list) => list,
                None => self.list().await,
            };
            if self.last.as_ref() != Some(&list) {
                self.last = Some(list.clone());
                return list;
            }
            changed = self.wait().await;
        }
    }

    /// Lists all aliases, as soon as the store is there.
    async fn list(&mut self) -> Vec<Alias> {
        loop {
            // Subscribe before listing, so that no change in between is missed.
            self.listen().await;
            self.listed = Instant::now();
            let last = self.last.as_deref().unwrap_or_default();
            match self.aliases.list_after(last).await {
                Ok(list) => return list,
                Err(error) => {
                    tracing::warn!(error = error.chain(), "aliases cannot be listed now");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Reads only the aliases that events named: a promotion does not wait until all others are
    /// read. Returns `None` if one cannot be read.
    async fn read(&mut self, named: BTreeMap<AliasName, u64>) -> Option<Vec<Alias>> {
        let last = self.last.iter().flatten().cloned();
        let mut list: BTreeMap<AliasName, Alias> =
            last.map(|alias| (alias.name().clone(), alias)).collect();
        for (name, revision) in named {
            if list
                .get(&name)
                .is_none_or(|known| known.revision < revision)
            {
                let read = self.aliases.read(&name, revision).await.ok()?;
                list.insert(name, read);
            }
        }
        Some(list.into_values().collect())
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

    /// Waits for an event, and takes those after it that are there as well. After the period, all
    /// aliases are listed again, however many events come.
    async fn wait(&mut self) -> Changed {
        let Some(events) = &mut self.events else {
            tokio::time::sleep(self.period.min(Duration::from_secs(5))).await;
            return Changed::All;
        };
        let due = self.listed + self.period;
        let mut named = BTreeMap::new();
        let mut event = tokio::time::timeout_at(due, events.next()).await.ok();
        while let Some(received) = event {
            let Some(received) = received else {
                // The bus has stopped and delivers no more events; asking again at once would be a
                // busy loop.
                self.events = None;
                tokio::time::sleep(self.period).await;
                return Changed::All;
            };
            let Some((alias, revision)) = about(&received) else {
                return Changed::All;
            };
            let newest: &mut u64 = named.entry(alias).or_default();
            *newest = revision.max(*newest);
            event = events.next().now_or_never();
        }
        if Instant::now() >= due {
            Changed::All
        } else {
            Changed::Named(named)
        }
    }
}

/// Returns the alias that an event names, and its revision.
fn about(received: &Received) -> Option<(AliasName, u64)> {
    let (alias, revision) = match &received.event {
        Event::AdapterPromoted(event) => (&event.alias, event.revision),
        Event::AdapterRolledBack(event) => (&event.alias, event.revision),
        _ => return None,
    };
    Some((alias.parse().ok()?, revision))
}
