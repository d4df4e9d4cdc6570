//! A job as a stream: its record, its steps from any one on, its end. The steps come from the job's
//! log in the store, so that it does not matter when the watcher comes, nor which workers the job
//! has had.

use std::collections::VecDeque;
use std::time::Duration;

use futures::{Stream, stream};
use togi_runtime::jobs::{Job, Wait};
use togi_runtime::{Class, Error, Fence, JobId, Jobs, Stopper, Store};
use tracing::debug;

use crate::error::Result;
use crate::learn::step::Step;
use crate::papers::log;
use crate::patience::STORE;

/// What a watcher follows.
pub(crate) struct Watcher {
    /// The object store.
    pub store: Store,
    /// The jobs' records.
    pub jobs: Jobs,
    /// Ends the stream.
    pub stopper: Stopper,
    /// Time between two looks.
    pub poll: Duration,
}

/// Something that happened in a job.
#[derive(Clone, Debug)]
pub(crate) enum Update {
    /// An optimizer step.
    Step(Step),
    /// The record has changed.
    Job(Job),
}

struct Watching {
    watcher: Watcher,
    id: JobId,
    next_step: u64,
    last_sent: Option<Job>,
    waiting: VecDeque<Update>,
    over: bool,
}

impl Watcher {
    /// Returns the job's updates: its record first, each step from `from_step` on once and in
    /// order, the record again whenever it changes, and last its final state.
    pub(crate) fn watch(
        self,
        id: JobId,
        from_step: u64,
    ) -> impl Stream<Item = Result<Update>> + Send {
        let next_step = from_step.max(1);
        let watching = Watching {
            watcher: self,
            id,
            next_step,
            last_sent: None,
            waiting: VecDeque::new(),
            over: false,
        };
        stream::try_unfold(watching, |mut watching| async move {
            let update = watching.next().await?;
            Ok(update.map(|update| (update, watching)))
        })
    }
}

impl Watching {
    async fn next(&mut self) -> Result<Option<Update>> {
        loop {
            if let Some(update) = self.waiting.pop_front() {
                return Ok(Some(update));
            }
            if self.over {
                return Ok(None);
            }
            match self.look().await {
                Ok(()) => {}
                // The bus or the store is away: the watcher waits as the job does.
                Err(error) if error.class() == Class::Unavailable => {
                    debug!(job = %self.id, %error, "watching later");
                    self.say_waiting(&error);
                }
                Err(error) => return Err(error),
            }
            if self.waiting.is_empty()
                && !self.over
                && !self.watcher.stopper.wait(self.watcher.poll).await
            {
                let message = "the trainer is stopping; watch again from the next step";
                return Err(Error::new(Class::Unavailable, message).into());
            }
        }
    }

    /// Tells the watcher once that its next steps wait for the store.
    fn say_waiting(&mut self, error: &crate::error::Error) {
        let Some(job) = self.last_sent.as_mut().filter(|job| job.wait.is_none()) else {
            return;
        };
        job.wait = Some(Wait::new(STORE, error.to_string()));
        self.waiting.push_back(Update::Job(job.clone()));
    }

    /// The record is read before the log: what a final record has done is in the log then.
    async fn look(&mut self) -> Result<()> {
        let job = self.watcher.jobs.get(&self.id).await?;
        let over = job.state.is_final();
        let changed = self.last_sent.as_ref() != Some(&job);
        if changed && !over {
            self.waiting.push_back(Update::Job(job.clone()));
            self.last_sent = Some(job.clone());
        }
        // Before its first claim a job has no log.
        if job.fence > Fence::default() {
            for step in log::read(&self.watcher.store, &self.id, self.next_step).await? {
                self.next_step = step.step + 1;
                self.waiting.push_back(Update::Step(step));
            }
        }
        if over {
            self.waiting.push_back(Update::Job(job));
            self.over = true;
        }
        Ok(())
    }
}
