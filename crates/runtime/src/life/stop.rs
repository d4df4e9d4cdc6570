//! Stopping is a value: each holder of a stopper can request the end and wait for it. A signal is
//! one source of the request.

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Requests the end and reports it. Clones are the same stopper. A child stops with its parent, but
/// not the parent with its child.
#[derive(Clone, Debug, Default)]
pub struct Stopper(CancellationToken);

impl Stopper {
    /// Returns a stopper that is not stopped.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a stopper that SIGINT or SIGTERM stops; a second signal ends the process at once
    /// with 130.
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
            let mut seen = 0;
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                seen += 1;
                if seen > 1 {
                    std::process::exit(130);
                }
                tracing::info!("stopping; a second signal ends the process at once");
                stop.stop();
            }
        });
        Ok(stopper)
    }

    /// Asks for the end.
    pub fn stop(&self) {
        self.0.cancel();
    }

    /// Waits until the end is requested.
    pub fn stopped(&self) -> WaitForCancellationFutureOwned {
        self.0.clone().cancelled_owned()
    }

    /// Returns whether the end was requested.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns a stopper that stops with this one and can be stopped alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// Runs a future until it ends or the stopper stops; `None` when it was stopped.
    pub async fn run<F: Future>(&self, future: F) -> Option<F::Output> {
        self.0.run_until_cancelled(future).await
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
}
