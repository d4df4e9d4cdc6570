//! Waits between attempts: exponential up to a limit, with jitter, ended by a stop.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use crate::life::stop::Stopper;

/// The waits of one series of attempts: each is twice the one before, up to a limit. Jitter takes
/// up to a quarter off, so that processes that lost the same server do not come back to it
/// together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    next: Duration,
}

impl Backoff {
    /// Returns a series that begins with `first` and never waits longer than `limit`.
    ///
    /// # Panics
    /// If `first` is zero or longer than `limit`. In a constant this is a compile error.
    #[must_use]
    pub const fn new(first: Duration, limit: Duration) -> Self {
        assert!(!first.is_zero(), "a backoff of zero is a busy loop");
        assert!(
            first.as_nanos() <= limit.as_nanos(),
            "the first wait is over the limit"
        );
        Self {
            first,
            limit,
            next: first,
        }
    }

    /// Begins the series again, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// Returns the next wait and moves on.
    pub fn step(&mut self) -> Duration {
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(self.limit);
        // A new hasher has random keys; the low byte of an empty hash is enough for jitter.
        let random = (RandomState::new().hash_one(()) & 0xff) as f64 / 255.0;
        wait.mul_f64(1.0 - random / 4.0)
    }

    /// Waits for the next step; returns false at once when the stopper stops meanwhile.
    pub async fn wait(&mut self, stopper: &Stopper) -> bool {
        let wait = self.step();
        stopper.wait(wait).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_begin_again() {
        let (first, limit) = (Duration::from_millis(100), Duration::from_millis(300));
        let mut backoff = Backoff::new(first, limit);
        for full in [100, 200, 300, 300].map(Duration::from_millis) {
            let wait = backoff.step();
            assert!(wait <= full && wait >= full.mul_f64(0.74), "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.step() <= first);
    }

    #[tokio::test]
    async fn a_stop_ends_a_wait() {
        let hour = Duration::from_secs(3600);
        let stopper = Stopper::new();
        stopper.stop();
        assert!(!Backoff::new(hour, hour).wait(&stopper).await);
    }
}
