//! The generations that the aliases of this replica serve: an immutable snapshot, which is replaced
//! as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

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
    /// Why the load of an alias's declared generation has failed; it is tried again.
    pub deferred: BTreeMap<AliasName, String>,
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

/// The current snapshot.
#[derive(Default)]
pub(crate) struct Shelf {
    served: watch::Sender<Arc<Served>>,
}

impl Shelf {
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
}
