//! The generation of each alias. The store holds an alias's revisions, create-if-absent, and the
//! highest one counts. The bucket is a mirror and events are hints.

mod following;
mod telling;

use futures::{StreamExt as _, stream};
use togi_common::{AliasName, Generation, canonical};

use crate::bus::Bus;
use crate::error::{Class, Error, Result};
use crate::layout;
use crate::registry::revisions::{AliasRevision, BaseMismatch};
use crate::store::Store;
use crate::telemetry;

/// Most aliases that are read at once.
const READS: usize = 16;

/// One revision of an alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The revision's number, from 1.
    pub revision: u64,
    /// The revision's content.
    pub content: AliasRevision,
}

impl Alias {
    /// Returns the alias's name.
    #[must_use]
    pub fn name(&self) -> &AliasName {
        &self.content.alias
    }

    /// Returns the generation that the alias names.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.content.generation
    }
}

/// The aliases. Clones share everything.
#[derive(Clone, Debug)]
pub struct Aliases {
    bus: Bus,
    store: Store,
}

impl Aliases {
    /// Creates the aliases of this bus and store.
    #[must_use]
    pub fn new(bus: &Bus, store: &Store) -> Self {
        Self {
            bus: bus.clone(),
            store: store.clone(),
        }
    }

    /// Returns the newest revision of an alias; `None` if the alias does not exist.
    ///
    /// # Errors
    /// `DataLoss`; `Unavailable`.
    pub async fn current(&self, alias: &AliasName) -> Result<Option<Alias>> {
        match self
            .store
            .newest_revision(&layout::alias_revisions(alias))
            .await?
        {
            Some((revision, _)) => Ok(Some(self.read(alias, revision).await?)),
            None => Ok(None),
        }
    }

    async fn read(&self, alias: &AliasName, revision: u64) -> Result<Alias> {
        let content: AliasRevision = self
            .store
            .get_json(&layout::alias_revision(alias, revision))
            .await?;
        if content.alias != *alias {
            let message = format!("revision {revision} of alias \"{alias}\" is another alias's");
            return Err(Error::data_loss(message));
        }
        Ok(Alias { revision, content })
    }

    /// Returns an alias's revisions, oldest first.
    ///
    /// # Errors
    /// As [`Aliases::current`].
    pub async fn history(&self, alias: &AliasName) -> Result<Vec<Alias>> {
        let newest = self.current(alias).await?.map_or(0, |alias| alias.revision);
        let mut revisions = Vec::new();
        for revision in 1..=newest {
            match self.read(alias, revision).await {
                Ok(found) => revisions.push(found),
                Err(error) if error.class() == Class::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(revisions)
    }

    /// Returns all aliases, ordered by name. An unreadable one is logged and left out.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list(&self) -> Result<Vec<Alias>> {
        self.list_after(&[]).await
    }

    /// Like [`Aliases::list`], but an unreadable alias keeps its entry from `last`.
    async fn list_after(&self, last: &[Alias]) -> Result<Vec<Alias>> {
        let names = self.store.list_dirs(&layout::aliases()).await?;
        let read = |name: String| async move {
            let current = async { self.current(&layout::parse("alias", &name)?).await };
            (current.await, name)
        };
        let mut reads = stream::iter(names).map(read).buffered(READS);
        let mut aliases = Vec::new();
        while let Some((current, name)) = reads.next().await {
            match current {
                Ok(found) => aliases.extend(found),
                Err(error) if error.class().retryable() => return Err(error),
                Err(error) => {
                    tracing::warn!(alias = name, error = error.chain(), "alias cannot be read");
                    aliases.extend(
                        last.iter()
                            .find(|alias| alias.name().as_str() == name)
                            .cloned(),
                    );
                }
            }
        }
        Ok(aliases)
    }

    /// Makes an alias name a published generation. If it names that generation already, no revision
    /// is written. An unreadable newest revision is replaced.
    ///
    /// # Errors
    /// `NotFound` if no such adapter was published; `Unavailable`.
    pub async fn promote(
        &self,
        alias: &AliasName,
        generation: Generation,
        base_mismatch: BaseMismatch,
    ) -> Result<Alias> {
        self.promote_where(alias, generation, base_mismatch, |_| true)
            .await
    }

    /// Like [`Aliases::promote`], but only if the alias names the expected generation, or does not
    /// exist if that is `None`. Returns the alias's newest revision, which names another generation
    /// if another writer was faster.
    ///
    /// # Errors
    /// As [`Aliases::promote`].
    pub async fn promote_over(
        &self,
        over: Option<Generation>,
        alias: &AliasName,
        generation: Generation,
    ) -> Result<Alias> {
        let may_go = |current: &Alias| {
            let current = Some(current.generation());
            current == over || current == Some(generation)
        };
        self.promote_where(alias, generation, BaseMismatch::Refused, may_go)
            .await
    }

    /// Promotes if `may_go` accepts the current revision; otherwise returns that revision.
    async fn promote_where(
        &self,
        alias: &AliasName,
        generation: Generation,
        base_mismatch: BaseMismatch,
        may_go: impl Fn(&Alias) -> bool,
    ) -> Result<Alias> {
        if !self
            .store
            .exists(&layout::adapter_manifest(generation))
            .await?
        {
            let message = format!("there is no adapter of generation \"{generation}\"");
            return Err(Error::not_found(message).with_field("generation"));
        }
        let revisions = layout::alias_revisions(alias);
        loop {
            let newest = self.store.newest_revision(&revisions).await?;
            let newest = newest.map_or(0, |(newest, _)| newest);
            let current = match newest {
                0 => None,
                newest => match self.read(alias, newest).await {
                    Err(error) if error.class() == Class::DataLoss => None,
                    read => Some(read?),
                },
            };
            if let Some(current) = current {
                let content = &current.content;
                if content.generation == generation && content.base_mismatch == base_mismatch {
                    // A process may have died between the revision and its event. Both are
                    // repeated, because they are idempotent.
                    self.tell(&current).await;
                    return Ok(current);
                }
                if !may_go(&current) {
                    return Ok(current);
                }
            }
            let content = AliasRevision {
                alias: alias.clone(),
                generation,
                rollback: false,
                base_mismatch,
                time: jiff::Timestamp::now().to_string(),
                traceparent: telemetry::current_traceparent(),
            };
            if let Some(declared) = self.declare(newest + 1, content).await? {
                return Ok(declared);
            }
        }
    }

    /// Sets an alias back to the generation before the current one; each further call goes back one
    /// more.
    ///
    /// # Errors
    /// `NotFound` if the alias does not exist; `FailedPrecondition` if it has no earlier
    /// generation; `Unavailable`.
    pub async fn rollback(&self, alias: &AliasName) -> Result<Alias> {
        loop {
            let history = self.history(alias).await?;
            let Some(newest) = history.last() else {
                let message = format!("there is no alias \"{alias}\"");
                return Err(Error::not_found(message).with_field("alias"));
            };
            let Some(before) = before(&history) else {
                let message = format!("alias \"{alias}\" named nothing before");
                return Err(Error::precondition(message).with_field("alias"));
            };
            let content = AliasRevision {
                rollback: true,
                time: jiff::Timestamp::now().to_string(),
                traceparent: telemetry::current_traceparent(),
                ..before.content.clone()
            };
            if let Some(declared) = self.declare(newest.revision + 1, content).await? {
                return Ok(declared);
            }
        }
    }

    /// Writes a revision and announces it; `None` if another writer was faster.
    async fn declare(&self, revision: u64, content: AliasRevision) -> Result<Option<Alias>> {
        let bytes = canonical::json(&content)?;
        let folder = layout::alias_revisions(&content.alias);
        if !self
            .store
            .put_revision(&folder, revision, bytes.into())
            .await?
        {
            return Ok(None);
        }
        let declared = Alias { revision, content };
        self.tell(&declared).await;
        Ok(Some(declared))
    }
}

/// Returns the revision to roll back to. Promotions form a stack, and a rollback pops it.
fn before(history: &[Alias]) -> Option<&Alias> {
    let mut stack: Vec<&Alias> = Vec::new();
    for alias in history {
        if alias.content.rollback && stack.len() > 1 {
            stack.pop();
        } else {
            stack.push(alias);
        }
    }
    stack
        .len()
        .checked_sub(2)
        .and_then(|below| stack.get(below))
        .copied()
}

#[cfg(test)]
mod tests {
    use togi_common::Digest;

    use super::*;

    fn generation(n: u8) -> Generation {
        Digest::from([n; 32]).into()
    }

    fn history(says: &[(u8, bool)]) -> Vec<Alias> {
        let alias = |(revision, (n, rollback)): (u64, &(u8, bool))| Alias {
            revision,
            content: AliasRevision {
                alias: "a".parse().unwrap(),
                generation: generation(*n),
                rollback: *rollback,
                base_mismatch: BaseMismatch::default(),
                time: String::new(),
                traceparent: None,
            },
        };
        (1..).zip(says).map(alias).collect()
    }

    #[test]
    fn a_rollback_goes_further_back_each_time() {
        type Says = &'static [(u8, bool)];
        let table: [(Says, Option<u8>); 5] = [
            (&[(1, false)], None),
            (&[(1, false), (2, false)], Some(1)),
            (&[(1, false), (2, false), (1, true)], None),
            (&[(1, false), (2, false), (3, false), (2, true)], Some(1)),
            (&[(1, false), (2, false), (1, true), (3, false)], Some(1)),
        ];
        for (says, expected) in table {
            let history = history(says);
            let found = before(&history).map(Alias::generation);
            assert_eq!(found, expected.map(generation), "{says:?}");
        }
    }
}
