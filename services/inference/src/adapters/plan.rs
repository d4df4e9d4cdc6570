//! Facts in, decision out: the next action, given the registry's declared set and this replica's
//! served set. Pure, so that every order of events ends in the same set.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use togi_common::{AliasName, Generation};
use togi_runtime::life::backoff::Backoff;
use togi_runtime::registry::revisions::BaseMismatch;

use super::served::Served;

/// Most loads at once: a promotion does not wait for another alias's slow load.
pub(crate) const MAX_LOADS: usize = 4;

/// An alias as the registry declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Declaration {
    /// The generation that the alias names.
    pub(crate) generation: Generation,
    /// The alias's revision, from 1.
    pub(crate) revision: u64,
    /// Whether it may be served over another base precision than in training.
    pub(crate) base_mismatch: BaseMismatch,
    /// Trace context of the promotion.
    pub(crate) traceparent: Option<String>,
    /// When this replica first read it. The newest is loaded first, because clients wait for it.
    pub(crate) heard: Instant,
}

/// All declared aliases.
pub(crate) type Declared = BTreeMap<AliasName, Declaration>;

/// Loads that failed for a transient reason, by alias.
pub(crate) type Deferred = BTreeMap<AliasName, Again>;

/// The revisions of aliases that are being loaded.
pub(crate) type Loading = BTreeSet<(AliasName, u64)>;

/// When a failed load is retried.
#[derive(Debug, Clone)]
pub(crate) struct Again {
    /// The alias's revision that failed; a new revision is loaded without delay.
    pub(crate) revision: u64,
    pub(crate) until: Instant,
    /// The delays after further failures.
    pub(crate) backoff: Backoff,
}

impl Again {
    pub(crate) fn after(revision: u64, mut backoff: Backoff) -> Self {
        Self {
            revision,
            until: Instant::now() + backoff.step(),
            backoff,
        }
    }
}

/// The next action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Load the generation that the alias names, then serve it under the alias.
    Load(AliasName),
    /// Stop serving the alias: it is no longer declared.
    Drop(AliasName),
    /// Wait until the registry changes, or until the given time.
    Wait(Option<Instant>),
}

/// Returns the next action towards the declared set. Drops come first, because they are free, then
/// the load of the newest declaration, while there are fewer than [`MAX_LOADS`].
pub(crate) fn next_action(
    declared: &Declared,
    served: &Served,
    (deferred, loading): (&Deferred, &Loading),
    now: Instant,
) -> Action {
    let known = served.aliases.keys().chain(served.refused.keys());
    if let Some(alias) = known
        .into_iter()
        .find(|alias| !declared.contains_key(*alias))
    {
        return Action::Drop(alias.clone());
    }
    let mut due: Option<(&AliasName, &Declaration)> = None;
    let mut earliest: Option<Instant> = None;
    for (alias, declaration) in declared {
        let is_loading = loading.contains(&(alias.clone(), declaration.revision));
        if is_loading || is_settled(alias, declaration, served) {
            continue;
        }
        match deferred.get(alias) {
            Some(again) if again.revision == declaration.revision && again.until > now => {
                earliest = Some(earliest.map_or(again.until, |other| other.min(again.until)));
            }
            _ if due.is_none_or(|(_, other)| declaration.heard > other.heard) => {
                due = Some((alias, declaration));
            }
            _ => {}
        }
    }
    match due {
        Some((alias, _)) if loading.len() < MAX_LOADS => Action::Load(alias.clone()),
        // The end of a load comes first.
        Some(_) => Action::Wait(None),
        None => Action::Wait(earliest),
    }
}

/// Whether an alias still has the revision that it had when a load began.
pub(crate) fn is_current(
    declared: Option<&Declared>,
    alias: &AliasName,
    declaration: &Declaration,
) -> bool {
    let now = declared.and_then(|declared| declared.get(alias));
    now.is_some_and(|now| now.revision == declaration.revision)
}

/// Whether this revision is served, or its refusal is final.
fn is_settled(alias: &AliasName, declaration: &Declaration, served: &Served) -> bool {
    let is_served = served.aliases.get(alias).is_some_and(|serving| {
        serving.revision == declaration.revision
            && serving.adapter.generation() == declaration.generation
    });
    let is_refused = served
        .refused
        .get(alias)
        .is_some_and(|refusal| refusal.revision == declaration.revision && refusal.is_final);
    is_served || is_refused
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use togi_common::Digest;

    use super::*;
    use crate::adapters::served::Refusal;

    fn alias(name: &str) -> AliasName {
        name.parse().unwrap()
    }

    fn generation(revision: u64) -> Generation {
        Digest::of(revision.to_le_bytes()).into()
    }

    fn declare(entries: &[(&str, u64, Instant)]) -> Declared {
        let declaration = |revision: u64, heard| Declaration {
            generation: generation(revision),
            revision,
            base_mismatch: BaseMismatch::Refused,
            traceparent: None,
            heard,
        };
        entries
            .iter()
            .map(|&(name, n, heard)| (alias(name), declaration(n, heard)))
            .collect()
    }

    fn refuse(name: &str, revision: u64, is_final: bool) -> Served {
        let refusal = Refusal {
            generation: generation(revision),
            revision,
            reason: "wrong shape".into(),
            is_final,
        };
        let mut served = Served::default();
        served.refused.insert(alias(name), refusal);
        served
    }

    #[test]
    fn the_newest_declaration_is_loaded_first() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let declared = declare(&[("a", 1, now), ("b", 7, later), ("c", 1, now)]);
        let action = next_action(
            &declared,
            &Served::default(),
            (&Deferred::new(), &Loading::new()),
            later,
        );
        assert_eq!(action, Action::Load(alias("b")));
    }

    #[test]
    fn a_refused_revision_is_left_alone_and_its_successor_is_tried() {
        let now = Instant::now();
        let served = refuse("a", 1, true);
        let same = declare(&[("a", 1, now)]);
        assert_eq!(
            next_action(&same, &served, (&Deferred::new(), &Loading::new()), now),
            Action::Wait(None)
        );
        let next = declare(&[("a", 2, now)]);
        assert_eq!(
            next_action(&next, &served, (&Deferred::new(), &Loading::new()), now),
            Action::Load(alias("a"))
        );
    }

    #[test]
    fn a_load_counts_only_while_the_alias_names_its_revision() {
        let now = Instant::now();
        let began = declare(&[("a", 2, now)]);
        let began = &began[&alias("a")];
        let table = [
            (Some(declare(&[("a", 2, now), ("b", 1, now)])), true),
            (Some(declare(&[("a", 3, now)])), false),
            (Some(declare(&[("b", 2, now)])), false),
            (None, false),
        ];
        for (declared, expected) in table {
            let current = is_current(declared.as_ref(), &alias("a"), began);
            assert_eq!(current, expected, "{declared:?}");
        }
    }

    #[test]
    fn a_deferred_load_blocks_no_other_and_comes_back() {
        let now = Instant::now();
        let until = now + Duration::from_secs(5);
        let declared = declare(&[("a", 1, now), ("b", 1, now)]);
        let again = |until| Again {
            revision: 1,
            until,
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(1)),
        };
        let mut deferred = Deferred::from([(alias("a"), again(until))]);
        let served = Served::default();
        assert_eq!(
            next_action(&declared, &served, (&deferred, &Loading::new()), now),
            Action::Load(alias("b"))
        );
        deferred.insert(alias("b"), again(until + Duration::from_secs(1)));
        assert_eq!(
            next_action(&declared, &served, (&deferred, &Loading::new()), now),
            Action::Wait(Some(until))
        );
        assert_eq!(
            next_action(&declared, &served, (&deferred, &Loading::new()), until),
            Action::Load(alias("a"))
        );
    }

    #[test]
    fn a_load_holds_up_neither_another_alias_nor_its_own_next_revision() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let declared = declare(&[("a", 2, later), ("b", 1, now)]);
        let after = |loading: &[(&str, u64)]| {
            let loading = loading
                .iter()
                .map(|&(name, revision)| (alias(name), revision));
            let (served, deferred) = (Served::default(), Deferred::new());
            next_action(&declared, &served, (&deferred, &loading.collect()), later)
        };
        assert_eq!(after(&[]), Action::Load(alias("a")));
        assert_eq!(after(&[("a", 2)]), Action::Load(alias("b")));
        assert_eq!(after(&[("a", 1)]), Action::Load(alias("a")));
        assert_eq!(after(&[("a", 2), ("b", 1)]), Action::Wait(None));
        let others = ["c", "d", "e", "f"].map(|name| (name, 1));
        assert_eq!(after(&others), Action::Wait(None));
    }

    #[test]
    fn an_undeclared_alias_is_dropped() {
        let served = refuse("gone", 1, true);
        let action = next_action(
            &Declared::new(),
            &served,
            (&Deferred::new(), &Loading::new()),
            Instant::now(),
        );
        assert_eq!(action, Action::Drop(alias("gone")));
    }
}
