//! The generations of this replica: an immutable snapshot of those that aliases serve, which the
//! loader replaces as a whole, and all generations in memory.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use parking_lot::Mutex;
use togi_common::{AliasName, Generation};
use tokio::sync::watch;

use crate::served_adapter::ServedAdapter;

/// A snapshot of the served aliases.
#[derive(Debug, Clone, Default)]
pub struct Served {
    /// The served generations, by alias.
    pub aliases: BTreeMap<AliasName, Serving>,
    /// Aliases whose declared generation was refused; the earlier generation may still be served.
    pub refused: BTreeMap<AliasName, Refusal>,
}

/// The generation that an alias serves.
#[derive(Debug, Clone)]
pub struct Serving {
    /// The adapter of this generation.
    pub adapter: Arc<ServedAdapter>,
    /// The alias's revision that named it.
    pub revision: u64,
    /// When serving began.
    pub since: SystemTime,
}

/// A refused generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The generation.
    pub generation: Generation,
    /// The alias's revision that named it.
    pub revision: u64,
    /// The reason.
    pub reason: String,
    /// Whether retries are useless: the stored objects never change.
    pub is_final: bool,
}

/// The current snapshot, and the generations in memory.
pub(crate) struct Shelf {
    served: watch::Sender<Arc<Served>>,
    resident: Mutex<Resident>,
    max_resident: usize,
}

#[derive(Default)]
struct Resident {
    // Weak: a generation lives as long as an alias, a running answer or `recent` holds it.
    all: HashMap<Generation, Weak<ServedAdapter>>,
    // Generations that requests named by digest, the most recent last; kept while they fit.
    recent: VecDeque<Arc<ServedAdapter>>,
}

impl Shelf {
    pub(crate) fn new(max_resident: usize) -> Self {
        Self {
            served: watch::Sender::default(),
            resident: Mutex::default(),
            max_resident,
        }
    }

    pub(crate) fn served(&self) -> Arc<Served> {
        self.served.borrow().clone()
    }

    /// Returns a receiver of the snapshot's changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Served>> {
        self.served.subscribe()
    }

    /// Replaces the snapshot with an edited copy; readers see either the old one or the new one.
    pub(crate) fn change(&self, edit: impl FnOnce(&mut Served)) {
        self.served
            .send_modify(|served| edit(Arc::make_mut(served)));
    }

    /// Returns a generation if it is in memory.
    pub(crate) fn find(&self, generation: Generation) -> Option<Arc<ServedAdapter>> {
        self.resident
            .lock()
            .all
            .get(&generation)
            .and_then(Weak::upgrade)
    }

    /// Makes room for one more generation by dropping recent ones that nothing else holds, oldest
    /// first. With `replaces` the limit is one higher, because the new generation takes over an
    /// alias. Returns false if there is no room.
    pub(crate) fn make_room(&self, replaces: bool) -> bool {
        let limit = self.max_resident + usize::from(replaces);
        let mut resident = self.resident.lock();
        while resident.count() >= limit {
            let unused = |adapter: &Arc<ServedAdapter>| Arc::strong_count(adapter) == 1;
            let Some(oldest) = resident.recent.iter().position(unused) else {
                return false;
            };
            resident.recent.remove(oldest);
        }
        true
    }

    /// Registers a loaded generation.
    pub(crate) fn put(&self, adapter: &Arc<ServedAdapter>) {
        let mut resident = self.resident.lock();
        resident
            .all
            .insert(adapter.generation(), Arc::downgrade(adapter));
    }

    /// Keeps a generation that a request named by digest, as long as there is room.
    pub(crate) fn keep(&self, adapter: &Arc<ServedAdapter>) {
        let mut resident = self.resident.lock();
        resident
            .recent
            .retain(|other| other.generation() != adapter.generation());
        resident.recent.push_back(adapter.clone());
    }

    /// Returns the number of generations in memory.
    pub(crate) fn count(&self) -> usize {
        self.resident.lock().count()
    }
}

impl Resident {
    fn count(&mut self) -> usize {
        self.all.retain(|_, adapter| adapter.strong_count() > 0);
        self.all.len()
    }
}
