//! The background tasks of a process. Each has a name, an error of one stops all, and all are
//! joined at the end.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::{Id, JoinSet};

use crate::error::{Class, Error, Result};
use crate::life::stop::Stopper;

/// How long tasks may take to end after the stop.
pub const GRACE: Duration = Duration::from_secs(25);

/// Owned background tasks.
pub struct Tasks {
    stopper: Stopper,
    set: JoinSet<Result<()>>,
    names: HashMap<Id, String>,
    grace: Duration,
}

impl Tasks {
    /// Returns an empty set; an error in one of its tasks stops the stopper.
    #[must_use]
    pub fn new(stopper: &Stopper) -> Self {
        Self {
            stopper: stopper.clone(),
            set: JoinSet::new(),
            names: HashMap::new(),
            grace: GRACE,
        }
    }

    /// Sets how long tasks may take to end after the stop; [`GRACE`] if not called.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Starts a task. It should end soon after the stopper stops; its early end without an error is
    /// fine.
    pub fn spawn(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        let stopper = self.stopper.clone();
        let handle = self.set.spawn(async move {
            // It is dropped on a panic too, so that a panic also stops the process.
            let guard = StopOnDrop(Some(stopper));
            let result = task.await;
            if result.is_ok() {
                guard.disarm();
            }
            result
        });
        self.names.insert(handle.id(), name.into());
    }

    /// Waits for all tasks and returns the first error. Tasks that run longer than the grace time
    /// after the stop are aborted.
    ///
    /// # Errors
    /// The first error of a task; a panic is one of class `Internal`.
    pub async fn join(mut self) -> Result<()> {
        let mut first = Ok(());
        let stopper = self.stopper.clone();
        let deadline = async {
            stopper.stopped().await;
            tokio::time::sleep(self.grace).await;
        };
        tokio::pin!(deadline);
        loop {
            let ended = tokio::select! {
                ended = self.set.join_next_with_id() => ended,
                () = &mut deadline => {
                    tracing::warn!(tasks = self.set.len(), "tasks did not end in time");
                    self.set.shutdown().await;
                    return first;
                }
            };
            let Some(ended) = ended else { return first };
            let (id, result) = match ended {
                Ok((id, result)) => (id, result),
                Err(error) => {
                    let panic = Error::new(Class::Internal, "a task panicked");
                    (error.id(), Err(panic.with_source(error)))
                }
            };
            let name = self.names.remove(&id).unwrap_or_default();
            if let Err(error) = result {
                tracing::error!(task = name, error = error.chain(), "task failed");
                if first.is_ok() {
                    first = Err(error);
                }
            }
        }
    }
}

struct StopOnDrop(Option<Stopper>);

impl StopOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(stopper) = &self.0 {
            stopper.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_of_one_task_stops_the_others() {
        let stopper = Stopper::new();
        let mut tasks = Tasks::new(&stopper);
        let waits = stopper.clone();
        tasks.spawn("waits", async move {
            waits.stopped().await;
            Ok(())
        });
        tasks.spawn("fails", async { Err(Error::unavailable("gone")) });
        let error = tasks.join().await.unwrap_err();
        assert_eq!(error.class(), Class::Unavailable);
        assert!(stopper.is_stopped());
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error_and_stops_the_others() {
        let stopper = Stopper::new();
        let mut tasks = Tasks::new(&stopper);
        tasks.spawn("panics", async { panic!("on purpose") });
        assert_eq!(tasks.join().await.unwrap_err().class(), Class::Internal);
        assert!(stopper.is_stopped());
    }
}
