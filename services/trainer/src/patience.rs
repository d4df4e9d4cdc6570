//! Waiting for a store or a bus that is away, as long as the job is ours.

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

    /// Waits after an error that passes.
    ///
    /// # Errors
    /// The error, if waiting does not help or the job is not ours any more.
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

/// Awaits a fallible future, made anew after each error that passes. A macro, as no closure can
/// lend what it has borrowed.
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
