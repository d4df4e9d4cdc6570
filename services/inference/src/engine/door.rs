//! The door to the engine: a fixed number of permits and of prompt tokens that wait, and the
//! channel for jobs. A request gets a permit immediately or is refused, and holds it until its
//! answer has ended, so that nothing grows without bound.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use parking_lot::Mutex;
use togi_model::{Engine, PAGE};
use tokio::sync::oneshot;

use crate::engine::account::Account;
use crate::engine::group::Group;
use crate::engine::load::{Load, Permit};
use crate::engine::probe::Probe;
use crate::engine::request::Priority;
use crate::engine::scheduler;
use crate::engine::terms::Terms;
use crate::error::{Error, Result};
use crate::pool::ReadyAdapter;

/// One in this many places of the queue is kept for clients that have no request inside.
const KEPT: usize = 4;
/// The client of probes.
const CLIENT: &str = "probe";

/// Work for the engine's thread.
pub(crate) enum Work {
    /// Answers to write.
    Answers(Box<Group>),
    /// A prompt to read.
    Probe(Box<Probe>),
}

impl Work {
    pub(crate) fn terms(&self) -> &Terms {
        match self {
            Self::Answers(group) => group.terms(),
            Self::Probe(probe) => &probe.terms,
        }
    }

    /// Returns the tokens of its prompt.
    pub(crate) fn prompt(&self) -> usize {
        match self {
            Self::Answers(group) => group.first.prompt.len(),
            Self::Probe(probe) => probe.prompt.len(),
        }
    }

    /// Returns how many answers begin with it.
    pub(crate) fn places(&self) -> usize {
        match self {
            Self::Answers(group) => group.places(),
            Self::Probe(_) => 1,
        }
    }

    /// Whether nobody waits for its end.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Self::Answers(group) => group.is_abandoned(),
            Self::Probe(probe) => probe.is_abandoned(),
        }
    }

    /// Ends it with an error before it has begun.
    pub(crate) fn fail(self, error: Error) {
        match self {
            Self::Answers(group) => group.fail(error),
            Self::Probe(probe) => probe.fail(error),
        }
    }
}

/// How much may be inside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Most answers that are active together.
    pub(crate) max_active: usize,
    /// Most requests that wait.
    pub(crate) max_waiting: usize,
    /// Most prompt tokens that wait.
    pub(crate) max_waiting_tokens: usize,
    /// Pages of all active answers together.
    pub(crate) pages: usize,
}

/// Lets requests in.
pub(crate) struct Door {
    load: Arc<Load>,
    room: Room,
    // `None` once closed.
    work: Mutex<Option<Sender<Work>>>,
}

impl Door {
    pub(crate) fn new(work: Sender<Work>, room: Room) -> Self {
        Self {
            load: Arc::new(Load::new(room.pages)),
            room,
            work: Mutex::new(Some(work)),
        }
    }

    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// Takes `count` permits at once. Batch requests may have half of all, so that they leave room
    /// to others, and a part of the queue is kept for clients that have no request inside.
    ///
    /// # Errors
    /// [`Error::Full`] when fewer are left, [`Error::Stopping`] when the door is closed.
    pub(crate) fn enter(
        &self,
        client: &Arc<str>,
        priority: Priority,
        count: usize,
    ) -> Result<Vec<Permit>> {
        if self.work.lock().is_none() {
            return Err(Error::Stopping);
        }
        let all = self.room.max_active + self.room.max_waiting;
        let limit = match priority {
            Priority::Interactive => all,
            Priority::Batch => all.div_ceil(2),
        };
        let kept = self.room.max_waiting / KEPT;
        let permits = self.load.enter(client, count, (limit, kept));
        permits.ok_or_else(|| self.full())
    }

    /// Counts a prompt among those that wait.
    ///
    /// # Errors
    /// [`Error::Full`] when they would have too many tokens.
    pub(crate) fn wait(&self, permit: &mut Permit, prompt: usize) -> Result<()> {
        if permit.wait(prompt, self.room.max_waiting_tokens) {
            Ok(())
        } else {
            Err(self.full())
        }
    }

    /// Returns the pages of a sequence of at most this many tokens.
    ///
    /// # Errors
    /// [`Error::Field`] with the figures when it never fits.
    pub(crate) fn pages(&self, field: &'static str, tokens: usize) -> Result<usize> {
        let (needed, all) = (Engine::pages_of(tokens), self.room.pages);
        if needed <= all {
            return Ok(needed);
        }
        let reason = format!(
            "prompt and answer of at most {tokens} tokens need {needed} pages of keys and values, \
             and this replica has {all}, for {} tokens",
            all * PAGE
        );
        Err(Error::field(field, reason))
    }

    /// Returns how many answers of `pages` pages each can ever begin together, at least 1.
    pub(crate) fn together(&self, pages: usize, priority: Priority) -> usize {
        let places = scheduler::places(self.room.max_active, priority);
        places.min(self.room.pages / pages.max(1)).max(1)
    }

    fn full(&self) -> Error {
        Error::Full {
            active: self.load.active(),
            waiting: self.load.waiting(),
            waiting_tokens: self.load.waiting_tokens(),
            retry_after: self.load.come_back(),
        }
    }

    /// Hands answers to the engine, which begin together.
    ///
    /// # Errors
    /// [`Error::Stopping`] when the door is closed.
    pub(crate) fn submit(&self, group: Group) -> Result<()> {
        self.send(Work::Answers(Box::new(group)))
    }

    /// Returns the logits after a prompt, from an engine on the thread's device that has the
    /// adapter. A probe is a batch request. It gets a permit also when none is left, because only
    /// one runs at a time.
    ///
    /// # Errors
    /// [`Error::Stopping`] when the door is closed, [`Error::Network`] for a prompt that the
    /// network cannot read, [`Error::Field`] for one that never fits.
    pub(crate) async fn probe(
        &self,
        engine: Arc<Engine>,
        adapter: Arc<ReadyAdapter>,
        prompt: Vec<u32>,
    ) -> Result<Vec<f32>> {
        let (sender, logits) = oneshot::channel();
        let client = CLIENT.into();
        let permits = self.load.enter(&client, 1, (usize::MAX, 0));
        let permit = permits.and_then(|mut permits| permits.pop());
        let terms = Terms {
            permit: permit.ok_or_else(|| self.full())?,
            account: Account {
                client,
                adapter: Some(adapter.generation()),
                priority: Priority::Batch,
            },
            pages: self.pages("prompt", prompt.len())?,
            arrived: Instant::now(),
            deadline: None,
            passed_over: 0,
        };
        self.send(Work::Probe(Box::new(Probe {
            engine,
            adapter,
            prompt,
            terms,
            logits: sender,
        })))?;
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
