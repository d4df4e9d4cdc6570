//! The thread of a run: the training loop with the state and the rows that it owns, and the channel
//! on which its updates come.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use togi_model::Engine;
use togi_tokens::Row;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tracing::Span;

use crate::error::{Error, Result};
use crate::gauge::Gauge;
use crate::learn::train::{self, Machine, Plan, Request, State, Update};

/// Updates that may wait for their reader before the thread blocks.
const UPDATES_AHEAD: usize = 64;

/// The thread's result: the state, and whether all steps are done.
pub(crate) type Trained = (State, Result<bool>);

/// A training loop at work. Dropping it asks the thread to end, which happens within a step.
pub(crate) struct TrainingThread {
    request: Arc<Request>,
    updates: mpsc::Receiver<Update>,
    thread: Option<JoinHandle<Trained>>,
}

impl Drop for TrainingThread {
    fn drop(&mut self) {
        self.request.abort();
    }
}

impl TrainingThread {
    /// Starts the loop from a state over `rows`, which start at the state's position. It is the
    /// only thread that uses the engine's device until it ends.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub(crate) fn start(
        engine: Arc<Engine>,
        gauge: Gauge,
        mut state: State,
        plan: Plan,
        mut rows: impl Iterator<Item = Result<Row>> + Send + 'static,
    ) -> Result<Self> {
        let (sender, updates) = mpsc::channel(UPDATES_AHEAD);
        let request = Arc::new(Request::default());
        let (requested, span) = (Arc::clone(&request), Span::current());
        let thread = Builder::new()
            .name("togi-train".to_owned())
            .spawn(move || {
                let trained = span.in_scope(|| {
                    let machine = Machine {
                        engine: &engine,
                        gauge: &gauge,
                    };
                    train::train(&mut state, &plan, &machine, &mut rows, &requested, &sender)
                });
                (state, trained)
            })?;
        Ok(Self {
            request,
            updates,
            thread: Some(thread),
        })
    }

    /// Asks for a checkpoint, then the end.
    pub(crate) fn stop(&self) {
        self.request.stop();
    }

    /// Asks for the end without a checkpoint.
    pub(crate) fn abort(&self) {
        self.request.abort();
    }

    /// Returns the next update; `None` once the loop has ended.
    pub(crate) async fn update(&mut self) -> Option<Update> {
        self.updates.recv().await
    }

    /// Like [`TrainingThread::update`], but blocks. Must not be called from async code.
    pub(crate) fn blocking_update(&mut self) -> Option<Update> {
        self.updates.blocking_recv()
    }

    /// Waits for the thread's result. Updates that nobody has taken are dropped.
    ///
    /// # Errors
    /// [`Error::Panicked`] if the thread panicked; [`Error::StoppedEarly`] if it was joined
    /// before.
    pub(crate) async fn join(&mut self) -> Result<Trained> {
        let thread = self.ending()?;
        let joined = spawn_blocking(move || thread.join()).await;
        let joined = joined.map_err(|_| Error::Panicked)?;
        joined.map_err(|_| Error::Panicked)
    }

    /// Like [`TrainingThread::join`], but blocks. Must not be called from async code.
    ///
    /// # Errors
    /// As [`TrainingThread::join`].
    pub(crate) fn blocking_join(&mut self) -> Result<Trained> {
        self.ending()?.join().map_err(|_| Error::Panicked)
    }

    /// Closes the channel, so that the loop never waits for a reader that has left.
    fn ending(&mut self) -> Result<JoinHandle<Trained>> {
        self.updates.close();
        self.thread.take().ok_or(Error::StoppedEarly)
    }
}
