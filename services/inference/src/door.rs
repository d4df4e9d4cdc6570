//! The door to the engine: a bounded number of places, given at once or not at all, and the way in for jobs. A place is held
//! from the request's arrival until its answer has ended, so that nothing grows behind the door.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use togi_model::Engine;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::generation::Generation;
use crate::probe::Probe;
use crate::sequence::Job;

/// Counts of requests inside; read by metrics and tests.
#[derive(Debug, Default)]
pub struct Load {
    inside: AtomicUsize,
    active: AtomicUsize,
}

impl Load {
    /// Answers that progress now.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Requests that wait for a place among them.
    pub fn waiting(&self) -> usize {
        self.inside
            .load(Ordering::Relaxed)
            .saturating_sub(self.active())
    }

    pub(crate) fn set_active(&self, active: usize) {
        self.active.store(active, Ordering::Relaxed);
    }
}

/// What the engine's thread is given.
pub(crate) enum Work {
    /// An answer to write, among the others.
    Answer(Box<Job>),
    /// A look at logits, at once.
    Probe(Probe),
}

/// Lets requests in.
pub(crate) struct Door {
    load: Arc<Load>,
    max_active: usize,
    max_waiting: usize,
    // None: closed.
    work: Mutex<Option<Sender<Work>>>,
}

/// A place behind the door; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Load>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Door {
    pub(crate) fn new(work: Sender<Work>, max_active: usize, max_waiting: usize) -> Door {
        Door {
            load: Arc::default(),
            max_active,
            max_waiting,
            work: Mutex::new(Some(work)),
        }
    }

    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// Takes a place.
    ///
    /// # Errors
    /// [`Error::Full`] when none is left, [`Error::Stopping`] when the door is closed.
    pub(crate) fn enter(&self) -> Result<Place> {
        if self.work().is_none() {
            return Err(Error::Stopping);
        }
        let places = self.max_active + self.max_waiting;
        let more = |inside: usize| (inside < places).then_some(inside + 1);
        self.load
            .inside
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map(|_| Place(self.load.clone()))
            .map_err(|_| Error::Full {
                active: self.max_active,
                waiting: self.max_waiting,
            })
    }

    /// Hands a job to the engine.
    ///
    /// # Errors
    /// [`Error::Stopping`] when the door is closed.
    pub(crate) fn submit(&self, job: Job) -> Result<()> {
        self.send(Work::Answer(Box::new(job)))
    }

    /// Returns the logits after a prompt, of any network on the engine's device. It takes no place: only one is asked for at a time.
    ///
    /// # Errors
    /// [`Error::Stopping`] when the door is closed, [`Error::Network`] for a prompt that the network cannot read.
    pub(crate) async fn probe(
        &self,
        network: Arc<Engine>,
        generation: Arc<Generation>,
        prompt: Vec<u32>,
    ) -> Result<Vec<f32>> {
        let (logits, heard) = oneshot::channel();
        self.send(Work::Probe(Probe {
            network,
            generation,
            prompt,
            logits,
        }))?;
        heard.await.map_err(|_| Error::Stopping)?
    }

    fn send(&self, work: Work) -> Result<()> {
        let sender = self.work();
        let sender = sender.as_ref().ok_or(Error::Stopping)?;
        sender.send(work).map_err(|_| Error::Stopping)
    }

    /// Lets nobody in any more; the engine ends when it has finished what is inside.
    pub(crate) fn close(&self) {
        self.work().take();
    }

    fn work(&self) -> std::sync::MutexGuard<'_, Option<Sender<Work>>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
