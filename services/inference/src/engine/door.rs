//! The door to the engine: a fixed number of permits, and the channel for jobs. A request gets a
//! permit immediately or is refused, and holds it until its answer has ended, so that nothing grows
//! without bound.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use parking_lot::Mutex;
use togi_model::Engine;
use tokio::sync::oneshot;

use crate::engine::load::{Load, Permit};
use crate::engine::probe::Probe;
use crate::engine::sequence::Job;
use crate::error::{Error, Result};
use crate::served_adapter::ServedAdapter;

/// Work for the engine's thread.
pub(crate) enum Work {
    /// An answer to write, among the others.
    Answer(Box<Job>),
    /// Logits to compute at once.
    Probe(Probe),
}

/// Lets requests in.
pub(crate) struct Door {
    load: Arc<Load>,
    max_active: usize,
    max_waiting: usize,
    // `None` once closed.
    work: Mutex<Option<Sender<Work>>>,
}

impl Door {
    pub(crate) fn new(work: Sender<Work>, max_active: usize, max_waiting: usize) -> Self {
        Self {
            load: Arc::default(),
            max_active,
            max_waiting,
            work: Mutex::new(Some(work)),
        }
    }

    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// Takes a permit.
    ///
    /// # Errors
    /// [`Error::Full`] when none is left, [`Error::Stopping`] when the door is closed.
    pub(crate) fn enter(&self) -> Result<Permit> {
        if self.work.lock().is_none() {
            return Err(Error::Stopping);
        }
        self.load
            .enter(self.max_active + self.max_waiting)
            .ok_or(Error::Full {
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

    /// Returns the logits after a prompt, from an engine on the thread's device that has the
    /// adapter. A probe needs no permit, because only one runs at a time.
    ///
    /// # Errors
    /// [`Error::Stopping`] when the door is closed, [`Error::Network`] for a prompt that the
    /// network cannot read.
    pub(crate) async fn probe(
        &self,
        engine: Arc<Engine>,
        adapter: Arc<ServedAdapter>,
        prompt: Vec<u32>,
    ) -> Result<Vec<f32>> {
        let (sender, logits) = oneshot::channel();
        self.send(Work::Probe(Probe {
            engine,
            adapter,
            prompt,
            logits: sender,
        }))?;
        logits.await.map_err(|_| Error::Stopping)?
    }

    fn send(&self, work: Work) -> Result<()> {
        self.work
            .lock()
            .as_ref()
            .ok_or(Error::Stopping)?
            .send(work)
            .map_err(|_| Error::Stopping)
    }

    /// Refuses further requests. The engine's thread ends after those inside.
    pub(crate) fn close(&self) {
        self.work.lock().take();
    }
}
