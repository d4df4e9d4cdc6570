//! Repeats an action while the store or the bus is unavailable and the lease is held.

use std::time::Duration;

use togi_runtime::Class;
use togi_runtime::worker::lease::Lease;
use tracing::warn;

use crate::error::{Error, Result};

const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How long to wait before the next try.
pub(crate) struct Patience(Duration);

impl Patience {
    pub(crate) fn new() -> Patience {
        Patience(Duration::from_millis(100))
    }

    /// Waits after a temporary error.
    ///
    /// # Errors
    /// The error, if it is not temporary or the lease is lost.
    pub(crate) async fn after(&mut self, error: Error, lease: &Lease) -> Result<()> {
        if error.class() != Class::Unavailable || !lease.is_held() {
            return Err(error);
        }
        warn!(job = %lease.job(), %error, "waiting for the store");
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST_WAIT);
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
