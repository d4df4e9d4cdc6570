//! Values on a device that callers hold by handle. The engine owns them: dropping a handle frees
//! its slot, and dropping the engine frees all.

use std::ptr;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use slab::Slab;

use crate::error::{Error, Result};

/// Values by slot. A pass shares those that it uses, so that no lock is held while it runs.
pub(super) struct Slots<T> {
    values: Arc<Mutex<Slab<Arc<T>>>>,
}

/// Names a slot, and frees it when dropped. A pass that runs meanwhile keeps the value to its end.
pub(super) struct Handle {
    slot: usize,
    slots: Weak<dyn Free>,
}

/// Slots of any type.
trait Free: Send + Sync {
    fn free(&self, slot: usize);
}

impl<T> Slots<T> {
    pub(super) fn new() -> Self {
        Self {
            values: Arc::default(),
        }
    }
}

impl<T: Send + Sync + 'static> Slots<T> {
    /// Takes a value into a free slot.
    pub(super) fn insert(&self, value: T) -> Handle {
        let weak = Arc::downgrade(&self.values);
        Handle {
            slot: self.values.lock().insert(Arc::new(value)),
            slots: weak,
        }
    }

    /// The value of a handle.
    ///
    /// # Errors
    /// [`Error::Input`] for a handle of another engine.
    pub(super) fn get(&self, handle: &Handle) -> Result<Arc<T>> {
        let is_ours = ptr::addr_eq(handle.slots.as_ptr(), Arc::as_ptr(&self.values));
        let value = self.values.lock().get(handle.slot).cloned();
        value
            .filter(|_| is_ours)
            .ok_or_else(|| Error::Input("an adapter or cache is of another engine".into()))
    }
}

impl<T: Send + Sync> Free for Mutex<Slab<Arc<T>>> {
    fn free(&self, slot: usize) {
        // Dropped after the lock is released: freeing a device's memory may take long.
        let freed = self.lock().try_remove(slot);
        drop(freed);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(slots) = self.slots.upgrade() {
            slots.free(self.slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_handle_frees_its_slot_and_a_pass_keeps_its_value() {
        let slots = Slots::new();
        let (first, second) = (slots.insert("first"), slots.insert("second"));
        let in_use = slots.get(&first).unwrap();
        let freed = Arc::downgrade(&in_use);
        let slot = first.slot;
        drop(first);
        assert_eq!((*in_use, slots.values.lock().len()), ("first", 1));
        drop(in_use);
        assert!(freed.upgrade().is_none());
        let third = slots.insert("third");
        assert_eq!(third.slot, slot);
        assert_eq!(*slots.get(&third).unwrap(), "third");
        assert_eq!(*slots.get(&second).unwrap(), "second");
    }

    #[test]
    fn a_handle_is_refused_by_another_engine_and_may_outlive_its_own() {
        let (ours, theirs) = (Slots::new(), Slots::new());
        let handle = ours.insert(1);
        let same_slot = theirs.insert(2);
        assert_eq!(handle.slot, same_slot.slot);
        assert!(theirs.get(&handle).is_err());
        let value = Arc::downgrade(&ours.get(&handle).unwrap());
        drop(ours);
        assert!(value.upgrade().is_none());
        drop(handle);
    }
}
