//! Facts in, decision out: from what the registry declares and what this replica serves to the next
//! thing to do. Pure, so that every order of events ends in the same set.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use togi_runtime::registry::revisions::BaseMismatch;

use super::served::Served;

/// What the registry says that an alias names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Declaration {
    /// The generation.
    pub(crate) generation: String,
    /// The alias's revision, from 1.
    pub(crate) revision: u64,
    /// Whether it may be served over a base that is held otherwise than in training.
    pub(crate) base_mismatch: BaseMismatch,
    /// Trace context of the promotion.
    pub(crate) traceparent: Option<String>,
    /// When this replica heard of it: the newest is loaded first, as somebody waits for it.
    pub(crate) heard: Instant,
}

/// All aliases.
pub(crate) type Declared = BTreeMap<String, Declaration>;

/// Loads that failed for a reason that may pass, by alias.
pub(crate) type Deferred = BTreeMap<String, Again>;

/// When a load is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Again {
    /// The alias's revision that failed; another one is tried at once.
    pub(crate) revision: u64,
    /// The delay.
    pub(crate) delay: Duration,
    /// Its end.
    pub(crate) until: Instant,
}

impl Again {
    pub(crate) fn after(revision: u64, delay: Duration) -> Again {
        Again {
            revision,
            delay,
            until: Instant::now() + delay,
        }
    }
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Load what the alias names, then let the alias serve it.
    Load(String),
    /// The alias is no longer declared: serve it no more.
    Drop(String),
    /// Nothing until the registry changes, or until then.
    Wait(Option<Instant>),
}

/// Returns the next step from what is served to what is declared: what nobody declares goes first
/// (it costs nothing), then the declaration heard of last.
pub(crate) fn next_step(
    declared: &Declared,
    served: &Served,
    deferred: &Deferred,
    now: Instant,
) -> Step {
    let known = served.aliases.keys().chain(served.refused.keys());
    if let Some(alias) = known
        .into_iter()
        .find(|alias| !declared.contains_key(*alias))
    {
        return Step::Drop(alias.clone());
    }
    let mut due: Option<(&String, &Declaration)> = None;
    let mut earliest: Option<Instant> = None;
    for (alias, declaration) in declared {
        if is_settled(alias, declaration, served) {
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
    due.map_or(Step::Wait(earliest), |(alias, _)| Step::Load(alias.clone()))
}

/// Whether an alias still says what it said when a load began: who has moved it meanwhile may have
/// had a reason.
pub(crate) fn still_says(
    declared: Option<&Declared>,
    alias: &str,
    declaration: &Declaration,
) -> bool {
    let now = declared.and_then(|declared| declared.get(alias));
    now.is_some_and(|now| now.revision == declaration.revision)
}

/// Whether this revision is served, or was refused for good.
fn is_settled(alias: &str, declaration: &Declaration, served: &Served) -> bool {
    let is_served = served.aliases.get(alias).is_some_and(|serving| {
        serving.revision == declaration.revision
            && serving.generation.digest() == declaration.generation
    });
    let is_refused = served
        .refused
        .get(alias)
        .is_some_and(|refusal| refusal.revision == declaration.revision && refusal.is_final);
    is_served || is_refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::served::Refusal;

    fn declare(entries: &[(&str, u64, Instant)]) -> Declared {
        let declaration = |revision: u64, heard| Declaration {
            generation: format!("{revision:064x}"),
            revision,
            base_mismatch: BaseMismatch::Refused,
            traceparent: None,
            heard,
        };
        entries
            .iter()
            .map(|&(alias, n, heard)| (alias.to_owned(), declaration(n, heard)))
            .collect()
    }

    fn refuse(alias: &str, revision: u64, is_final: bool) -> Served {
        let refusal = Refusal {
            generation: format!("{revision:064x}"),
            revision,
            reason: "wrong shape".into(),
            is_final,
        };
        let mut served = Served::default();
        served.refused.insert(alias.into(), refusal);
        served
    }

    #[test]
    fn the_newest_declaration_is_loaded_first() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let declared = declare(&[("a", 1, now), ("b", 7, later), ("c", 1, now)]);
        let step = next_step(&declared, &Served::default(), &Deferred::new(), later);
        assert_eq!(step, Step::Load("b".into()));
    }

    #[test]
    fn a_refused_revision_is_left_alone_and_its_successor_is_tried() {
        let now = Instant::now();
        let served = refuse("a", 1, true);
        let same = declare(&[("a", 1, now)]);
        assert_eq!(
            next_step(&same, &served, &Deferred::new(), now),
            Step::Wait(None)
        );
        let next = declare(&[("a", 2, now)]);
        assert_eq!(
            next_step(&next, &served, &Deferred::new(), now),
            Step::Load("a".into())
        );
    }

    #[test]
    fn what_was_loaded_counts_only_while_the_alias_says_it() {
        let now = Instant::now();
        let began = declare(&[("a", 2, now)]);
        let began = &began["a"];
        let table = [
            (Some(declare(&[("a", 2, now), ("b", 1, now)])), true),
            (Some(declare(&[("a", 3, now)])), false),
            (Some(declare(&[("b", 2, now)])), false),
            (None, false),
        ];
        for (declared, expected) in table {
            let says = still_says(declared.as_ref(), "a", began);
            assert_eq!(says, expected, "{declared:?}");
        }
    }

    #[test]
    fn a_deferred_load_blocks_no_other_and_comes_back() {
        let now = Instant::now();
        let until = now + Duration::from_secs(5);
        let declared = declare(&[("a", 1, now), ("b", 1, now)]);
        let again = |until| Again {
            revision: 1,
            delay: Duration::ZERO,
            until,
        };
        let mut deferred = Deferred::from([("a".into(), again(until))]);
        let served = Served::default();
        assert_eq!(
            next_step(&declared, &served, &deferred, now),
            Step::Load("b".into())
        );
        deferred.insert("b".into(), again(until + Duration::from_secs(1)));
        assert_eq!(
            next_step(&declared, &served, &deferred, now),
            Step::Wait(Some(until))
        );
        assert_eq!(
            next_step(&declared, &served, &deferred, until),
            Step::Load("a".into())
        );
    }

    #[test]
    fn what_nobody_declares_is_dropped() {
        let served = refuse("gone", 1, true);
        let step = next_step(&Declared::new(), &served, &Deferred::new(), Instant::now());
        assert_eq!(step, Step::Drop("gone".into()));
    }
}
