//! Repeats an action while a part of the system is unavailable and the lease is held. The job's
//! record says meanwhile what it waits for.

use std::time::Duration;

use togi_runtime::Class;
use togi_runtime::jobs::Wait;
use togi_runtime::life::backoff::Backoff;
use togi_runtime::worker::lease::Lease;
use tokio::sync::watch;
use tracing::warn;

use crate::error::{Error, Result};

/// The part that most actions need.
pub(crate) const STORE: &str = "the object store";

/// The waits between the tries.
pub(crate) struct Patience {
    part: &'static str,
    backoff: Backoff,
    wait: Option<Wait>,
}

impl Patience {
    /// Returns the patience of an action that needs a part.
    pub(crate) fn with(part: &'static str) -> Self {
        Self {
            part,
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
            wait: None,
        }
    }

    /// Waits after a temporary error. The loss of the lease ends the wait.
    ///
    /// # Errors
    /// The error, if it is not temporary or the lease is lost.
    pub(crate) async fn after(&mut self, error: Error, lease: &Lease) -> Result<()> {
        if error.class() != Class::Unavailable || !lease.is_held() {
            return Err(error);
        }
        let part = self.part;
        warn!(job = %lease.job(), %error, part, "waiting");
        let reason = error.to_string();
        if self.wait.as_ref().is_none_or(|wait| wait.reason != reason) {
            let since = self.wait.take().map(|wait| wait.since);
            let mut wait = Wait::new(part, reason);
            wait.since = since.unwrap_or(wait.since);
            lease.waits_for(&wait).await;
            self.wait = Some(wait);
        }
        tokio::select! {
            () = tokio::time::sleep(self.backoff.step()) => {}
            () = lease.lost() => {}
        }
        Ok(())
    }

    /// Says that the action has succeeded.
    pub(crate) async fn over(self, lease: &Lease) {
        if self.wait.is_some() {
            lease.goes_on().await;
        }
    }
}

/// Writes the waits of a reader into the job's record until the reader ends.
pub(crate) async fn report(lease: Lease, mut waits: watch::Receiver<Option<Wait>>) {
    while waits.changed().await.is_ok() {
        let wait = waits.borrow_and_update().clone();
        match wait {
            Some(wait) => lease.waits_for(&wait).await,
            None => lease.goes_on().await,
        }
    }
}

/// Awaits a fallible future, made again after each temporary error. It is a macro because a closure
/// cannot return a future that borrows from the closure.
macro_rules! retry {
    ($lease:expr, $action:expr) => {
        crate::patience::retry!($lease, crate::patience::STORE, $action)
    };
    ($lease:expr, $part:expr, $action:expr) => {{
        let mut patience = crate::patience::Patience::with($part);
        loop {
            match $action.await {
                Ok(value) => {
                    patience.over($lease).await;
                    break Ok(value);
                }
                Err(error) => {
                    if let Err(error) = patience.after(error, $lease).await {
                        break Err(error);
                    }
                }
            }
        }
    }};
}
pub(crate) use retry;
