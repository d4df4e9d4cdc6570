//! Tells NATS of the aliases' revisions, each by an event and then by the mirror. A revision counts
//! without both. What the mirror lacks is told again, so that an absence of NATS loses no event of
//! a current revision.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use togi_common::canonical;

use crate::error::Result;
use crate::events::Event;
use crate::life::stop::Stopper;
use crate::registry::aliases::{Alias, Aliases};

/// Time between two comparisons of the mirror with the store.
const PERIOD: Duration = Duration::from_secs(30);

/// The part of the mirror that is compared.
#[derive(Deserialize)]
struct Mirrored {
    revision: u64,
}

impl Aliases {
    /// Publishes a revision's event and updates the mirror, for a moment: [`Aliases::keep_told`]
    /// does what NATS does not take.
    pub(super) async fn tell(&self, alias: &Alias) {
        if let Err(error) = self.bus.in_a_moment(self.publish(alias)).await {
            self.bus.leave_undone();
            tracing::warn!(
                alias = alias.name().as_str(),
                revision = alias.revision,
                error = error.chain(),
                "the alias has changed, and NATS hears of it later"
            );
        }
    }

    /// Tells NATS what it lacks until the stopper stops: now, every half minute, and as soon as
    /// NATS is back.
    ///
    /// # Errors
    /// Never: the signature is that of a task.
    pub async fn keep_told(self, stopper: Stopper) -> Result<()> {
        let mut rounds = self.bus.rounds(PERIOD);
        while rounds.next(&stopper).await {
            if let Some(Err(error)) = stopper.run(self.tell_rest()).await {
                rounds.failed();
                tracing::warn!(error = error.chain(), "NATS is not told of the aliases now");
            }
        }
        Ok(())
    }

    /// Tells NATS the current revisions that its mirror lacks; returns their number.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn tell_rest(&self) -> Result<usize> {
        let entries = self.bus.aliases().entries().await?.into_iter();
        let mirrored = entries.filter_map(|entry| {
            let mirrored: Mirrored = serde_json::from_slice(&entry.value?).ok()?;
            Some((entry.key, mirrored.revision))
        });
        let mirrored: BTreeMap<String, u64> = mirrored.collect();
        let mut told = 0;
        for alias in self.list().await? {
            if mirrored.get(alias.name().as_str()) != Some(&alias.revision) {
                self.publish(&alias).await?;
                told += 1;
            }
        }
        Ok(told)
    }

    /// Replicas wait for the event, so it comes first; the mirror then says that it was published.
    async fn publish(&self, alias: &Alias) -> Result<()> {
        let (name, generation) = (alias.name(), alias.generation());
        let event = if alias.content.rollback {
            Event::adapter_rolled_back(name, generation, alias.revision)
        } else {
            Event::adapter_promoted(name, generation, alias.revision)
        };
        let traceparent = alias.content.traceparent.as_deref();
        self.bus.publish_in(event, traceparent).await?;
        let bytes = canonical::json(&serde_json::json!({
            "alias": name, "generation": generation, "revision": alias.revision,
        }))?;
        self.bus.aliases().put(name.as_str(), bytes).await?;
        Ok(())
    }
}
