//! The adapters on the device, within a number of bytes. A request has a [`ReadyAdapter`] from its
//! arrival to its end, and what has one stays. It knows neither the store nor how an adapter gets
//! onto the device.

pub(crate) mod tier;

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use togi_common::Generation;
use togi_model::Adapter;
use tokio::sync::OwnedMutexGuard;

use crate::drain::Drain;
use crate::error::{Error, Result};
use crate::pool::tier::Tier;
use crate::served_adapter::ServedAdapter;

/// The pool of a device.
pub(crate) struct Pool {
    state: Mutex<State>,
}

struct State {
    tier: Tier<Slot>,
    /// How quickly adapters come out of use, while all of them are used.
    drain: Drain,
}

/// An adapter of the pool.
pub(crate) struct Slot {
    served: Arc<ServedAdapter>,
    /// `None` while it is being brought onto the device.
    adapter: Option<Adapter>,
}

/// What a tier has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Adapters.
    pub adapters: usize,
    /// Those that requests use.
    pub in_use: usize,
    /// The bytes of all.
    pub bytes: u64,
    /// The most bytes.
    pub limit: u64,
}

impl<T> From<&Tier<T>> for Usage {
    fn from(tier: &Tier<T>) -> Self {
        Self {
            adapters: tier.count(),
            in_use: tier.in_use().0,
            bytes: tier.bytes(),
            limit: tier.limit(),
        }
    }
}

impl Pool {
    /// An empty pool of at most this many bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            state: Mutex::new(State {
                tier: Tier::new(limit),
                drain: Drain::default(),
            }),
        }
    }

    /// Returns an adapter that is on the device.
    pub(crate) fn take(self: &Arc<Self>, generation: Generation) -> Option<ReadyAdapter> {
        let mut state = self.state.lock();
        let slot = state.tier.get(generation)?;
        let adapter = slot.adapter.clone()?;
        let served = Arc::clone(&slot.served);
        state.tier.hold(generation);
        Some(ReadyAdapter {
            served,
            adapter,
            pool: Some(Arc::clone(self)),
        })
    }

    /// Makes room for an adapter that the pool does not have. Returns those that go for it, which
    /// are freed when they are dropped. Only who has the adapter's lock brings it up.
    ///
    /// # Errors
    /// [`Error::PoolFull`] if those in use leave no room.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        served: &Arc<ServedAdapter>,
        lock: OwnedMutexGuard<()>,
    ) -> Result<(Place, Vec<Slot>)> {
        let mut state = self.state.lock();
        let slot = Slot {
            served: Arc::clone(served),
            adapter: None,
        };
        let (generation, bytes) = (served.generation(), served.device_bytes());
        match state.tier.insert(generation, bytes, slot) {
            Ok(gone) => {
                let place = Place {
                    generation,
                    pool: Some(Arc::clone(self)),
                    _lock: lock,
                };
                Ok((place, gone))
            }
            Err(_) => Err(state.full(bytes)),
        }
    }

    /// Whether an adapter is on the device, or can be without another one going.
    pub(crate) fn has_room(&self, served: &ServedAdapter) -> bool {
        let state = self.state.lock();
        state.tier.get(served.generation()).is_some() || state.tier.has_room(served.device_bytes())
    }

    /// Returns what is on the device or on its way.
    pub(crate) fn usage(&self) -> Usage {
        Usage::from(&self.state.lock().tier)
    }

    fn release(&self, generation: Generation) {
        let mut state = self.state.lock();
        if state.tier.release(generation) && state.drain.is_blocked() {
            state.drain.note(Instant::now(), 1, 0);
        }
    }
}

impl State {
    /// The refusal of an adapter of this many bytes. From it until one comes out of use, the time
    /// is measured.
    fn full(&mut self, needed: u64) -> Error {
        self.drain.note(Instant::now(), 0, 1);
        let (in_use, bytes) = self.tier.in_use();
        Error::PoolFull {
            needed,
            in_use,
            bytes,
            limit: self.tier.limit(),
            retry_after: self.drain.come_back(1),
        }
    }
}

/// Room for an adapter that is being brought onto the device, given back on drop.
pub(crate) struct Place {
    generation: Generation,
    /// `None` once it is filled.
    pool: Option<Arc<Pool>>,
    /// Free only after the place was filled or given back: the next one reserves it anew.
    _lock: OwnedMutexGuard<()>,
}

impl Place {
    /// Gives the adapter its place.
    pub(crate) fn fill(mut self, served: &Arc<ServedAdapter>, adapter: Adapter) -> ReadyAdapter {
        let pool = self.pool.take();
        if let Some(pool) = &pool
            && let Some(slot) = pool.state.lock().tier.get_mut(self.generation)
        {
            slot.adapter = Some(adapter.clone());
        }
        ReadyAdapter {
            served: Arc::clone(served),
            adapter,
            pool,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.state.lock().tier.remove(self.generation);
        }
    }
}

/// An adapter on the device, which stays there while this lives.
pub(crate) struct ReadyAdapter {
    served: Arc<ServedAdapter>,
    adapter: Adapter,
    /// `None` for one that is in no pool.
    pool: Option<Arc<Pool>>,
}

impl ReadyAdapter {
    /// An adapter that is in no pool.
    pub(crate) fn alone(served: Arc<ServedAdapter>, adapter: Adapter) -> Self {
        Self {
            served,
            adapter,
            pool: None,
        }
    }

    pub(crate) fn generation(&self) -> Generation {
        self.served.generation()
    }

    pub(crate) fn adapter(&self) -> &Adapter {
        &self.adapter
    }
}

impl Drop for ReadyAdapter {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            pool.release(self.served.generation());
        }
    }
}
