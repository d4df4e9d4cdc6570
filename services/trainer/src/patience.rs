//! Repeats an action while the store or the bus is unavailable and the lease is held.

use std::time::Duration;

use togi_runtime::Class;
use togi_runtime::life::backoff::Backoff;
use togi_runtime::worker::lease::Lease;
use tracing::warn;

use crate::error::{Error, Result};

/// The waits between the tries.
pub(crate) struct Patience(Backoff);

impl Patience {
    pub(crate) fn new() -> Self {
        Self(Backoff::new(
            Duration::from_millis(100),
            Duration::from_secs(5),
        ))
    }

    /// Waits after a temporary error. The loss of the lease ends the wait.
    ///
    /// # Errors
    /// The error, if it is not temporary or the lease is lost.
    pub(crate) async fn after(&mut self, error: Error, lease: &Lease) -> Result<()> {
        if error.class() != Class::Unavailable || !lease.is_held() {
            return Err(error);
        }
        warn!(job = %lease.job(), %error, "waiting for the store");
        tokio::select! {
            () = tokio::time::sleep(self.0.step()) => {}
            () = lease.lost() => {}
        }
        Ok(())
    }
}

/// Awaits a fallible future, made again after each temporary error. It is a macro because a closure
/// cannot return a future that borrows from the closure.
macro_rules! retry {
    ($lease:expr, $action:expr) => {{
        let mut patience = crate::patience::Patience::new();
        loop {
            match $action.await {
                Ok(value) => break Ok(value),
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
