//! What this replica serves: an immutable picture that readers take by `Arc` and the loader
//! replaces whole, and the generations that are in memory, whoever holds them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::served_adapter::ServedAdapter;

/// A picture of what is served.
#[derive(Debug, Clone, Default)]
pub struct Served {
    /// By alias.
    pub aliases: BTreeMap<String, Serving>,
    /// Declared, and refused here; the alias may still serve an earlier generation.
    pub refused: BTreeMap<String, Refusal>,
}

/// An alias's generation.
#[derive(Debug, Clone)]
pub struct Serving {
    /// The generation.
    pub generation: Arc<ServedAdapter>,
    /// The alias's revision that named it.
    pub revision: u64,
    /// Since when it is served.
    pub since: SystemTime,
}

/// A generation that was refused whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The generation.
    pub generation: String,
    /// The alias's revision that named it.
    pub revision: u64,
    /// Why.
    pub reason: String,
    /// Whether no further try can change it: objects never change.
    pub is_final: bool,
}

/// The current picture, and what is in memory.
pub(crate) struct Shelf {
    served: watch::Sender<Arc<Served>>,
    resident: Mutex<Resident>,
    max_resident: usize,
}

#[derive(Default)]
struct Resident {
    // Weak: a generation lives as long as an alias, a running answer or `recent` holds it.
    all: HashMap<String, Weak<ServedAdapter>>,
    // Generations that were asked for by their digest, most recent last: kept while there is room.
    recent: VecDeque<Arc<ServedAdapter>>,
}

impl Shelf {
    pub(crate) fn new(max_resident: usize) -> Shelf {
        Shelf {
            served: watch::Sender::default(),
            resident: Mutex::default(),
            max_resident,
        }
    }

    /// Returns the current picture.
    pub(crate) fn served(&self) -> Arc<Served> {
        self.served.borrow().clone()
    }

    /// Returns the picture as it changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Served>> {
        self.served.subscribe()
    }

    /// Replaces the picture by a changed copy; readers see the old one or the new one.
    pub(crate) fn change(&self, edit: impl FnOnce(&mut Served)) {
        self.served
            .send_modify(|served| edit(Arc::make_mut(served)));
    }

    /// Returns a generation that is in memory.
    pub(crate) fn find(&self, digest: &str) -> Option<Arc<ServedAdapter>> {
        self.resident().all.get(digest).and_then(Weak::upgrade)
    }

    /// Makes room for one more generation: forgets recent ones that nobody else holds, oldest
    /// first. `replaces` says that the newcomer takes an alias from another generation. Returns
    /// whether there is room.
    pub(crate) fn make_room(&self, replaces: bool) -> bool {
        let limit = self.max_resident + usize::from(replaces);
        let mut resident = self.resident();
        while resident.count() >= limit {
            let unused = |generation: &Arc<ServedAdapter>| Arc::strong_count(generation) == 1;
            let Some(oldest) = resident.recent.iter().position(unused) else {
                return false;
            };
            resident.recent.remove(oldest);
        }
        true
    }

    /// Takes a newly loaded generation into memory.
    pub(crate) fn put(&self, generation: &Arc<ServedAdapter>) {
        let mut resident = self.resident();
        resident
            .all
            .insert(generation.digest().to_owned(), Arc::downgrade(generation));
    }

    /// Keeps a generation that was asked for by its digest while there is room.
    pub(crate) fn keep(&self, generation: &Arc<ServedAdapter>) {
        let mut resident = self.resident();
        resident
            .recent
            .retain(|other| other.digest() != generation.digest());
        resident.recent.push_back(generation.clone());
    }

    /// Returns how many generations are in memory.
    pub(crate) fn count(&self) -> usize {
        self.resident().count()
    }

    fn resident(&self) -> std::sync::MutexGuard<'_, Resident> {
        self.resident.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resident {
    fn count(&mut self) -> usize {
        self.all
            .retain(|_, generation| generation.strong_count() > 0);
        self.all.len()
    }
}
