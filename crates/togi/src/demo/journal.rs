//! Records the events during the demonstration.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use togi_runtime::bus::reader::Start;
use togi_runtime::{Context, Event};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::error::{Error, Result};

/// Records every event from the first on, until dropped.
pub(super) struct Journal {
    events: watch::Receiver<Vec<Event>>,
    task: JoinHandle<()>,
}

impl Journal {
    /// Starts recording.
    pub(super) async fn start(context: &Context) -> Result<Self> {
        let mut stream = context.bus.events(&[], Start::All).await?;
        let (sender, events) = watch::channel(Vec::new());
        let task = tokio::spawn(async move {
            while let Some(received) = stream.next().await {
                sender.send_modify(|events| events.push(received.event));
            }
        });
        Ok(Self { events, task })
    }

    /// Returns how often each event was seen.
    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for event in self.events.borrow().iter() {
            *counts.entry(event.kind().name().to_owned()).or_default() += 1;
        }
        counts
    }

    /// Waits until a training job is queued that is not among the known ones; returns its id.
    pub(super) async fn train_job_beside(
        &self,
        known: &[String],
        patience: Duration,
    ) -> Result<String> {
        let fresh = |events: &[Event]| {
            events.iter().find_map(|event| match event {
                Event::JobQueued(queued)
                    if queued.kind == "train" && !known.contains(&queued.job) =>
                {
                    Some(queued.job.clone())
                }
                _ => None,
            })
        };
        let mut events = self.events.clone();
        let found = timeout(patience, events.wait_for(|events| fresh(events).is_some())).await;
        match found {
            Ok(Ok(events)) => fresh(&events).ok_or_else(none),
            _ => Err(none()),
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn none() -> Error {
    Error::Failed("the policy started no training".to_owned())
}
