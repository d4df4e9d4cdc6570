//! Stopping is a value: each holder of a stopper can request the end and wait for it. A signal is
//! one source of the request.

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Requests the end and reports it. Clones are the same stopper. A child stops with its parent, but
/// not the parent with its child.
#[derive(Clone, Debug, Default)]
pub struct Stopper {
    stop: CancellationToken,
    kill: CancellationToken,
    holds: TaskTracker,
}

/// Delays the end of the process until it is dropped; [`Stopper::hold`] gives it.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "only its drop counts")] TaskTrackerToken);

impl Stopper {
    /// Returns a stopper that is not stopped.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a stopper that SIGINT or SIGTERM stops. A second signal ends the process with 130 as
    /// soon as no [`Hold`] is left, and a third one in any case.
    ///
    /// # Errors
    /// When the process cannot listen to signals.
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let stopper = Self::new();
        let stop = stopper.clone();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // Nothing joins this task: it lives as long as the process and owns nothing.
        tokio::spawn(async move {
            let mut signal = async || {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            };
            signal().await;
            tracing::info!("stopping; a second signal ends the process at once");
            stop.stop();
            signal().await;
            stop.kill.cancel();
            tokio::select! {
                () = stop.released() => {}
                () = signal() => {}
            }
            std::process::exit(130);
        });
        Ok(stopper)
    }

    /// Asks for the end.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until the end is requested at once, by a second signal. The owner of a child process
    /// then kills it.
    pub fn killed(&self) -> WaitForCancellationFutureOwned {
        self.kill.clone().cancelled_owned()
    }

    /// Delays the end of the process until the hold is dropped. The owner of a child process keeps
    /// one as long as the child lives, because the child would outlive this process.
    #[must_use]
    pub fn hold(&self) -> Hold {
        Hold(self.holds.token())
    }

    /// Waits until no hold is left.
    pub async fn released(&self) {
        self.holds.close();
        self.holds.wait().await;
    }

    /// Waits until the end is requested.
    pub fn stopped(&self) -> WaitForCancellationFutureOwned {
        self.stop.clone().cancelled_owned()
    }

    /// Returns whether the end was requested.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Returns a stopper that stops with this one and can be stopped alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            stop: self.stop.child_token(),
            ..self.clone()
        }
    }

    /// Runs a future until it ends or the stopper stops; `None` when it was stopped.
    pub async fn run<F: Future>(&self, future: F) -> Option<F::Output> {
        self.stop.run_until_cancelled(future).await
    }

    /// Waits for a time; returns false at once when the stopper stops meanwhile.
    pub async fn wait(&self, time: std::time::Duration) -> bool {
        self.run(tokio::time::sleep(time)).await.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_stops_with_its_parent_but_not_the_parent_with_it() {
        let parent = Stopper::new();
        let (one, two) = (parent.child(), parent.child());
        one.stop();
        assert!(one.is_stopped() && !parent.is_stopped() && !two.is_stopped());
        parent.stop();
        two.stopped().await;
        assert_eq!(parent.run(std::future::pending::<()>()).await, None);
    }

    #[tokio::test]
    async fn the_end_waits_for_every_hold() {
        let stopper = Stopper::new();
        let (one, two) = (stopper.hold(), stopper.child().hold());
        let mut released = std::pin::pin!(stopper.released());
        drop(one);
        assert!(futures::poll!(&mut released).is_pending());
        drop(two);
        released.await;
    }
}
