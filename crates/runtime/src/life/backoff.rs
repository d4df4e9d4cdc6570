//! Waits between attempts: exponential up to a limit, with jitter, ended by a stop.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use crate::life::stop::Stopper;

/// The waits of one series of attempts: each is twice the one before, up to a limit. Jitter takes
/// up to a quarter off, so that processes that lost the same server do not return together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    failures: u32,
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
            failures: 0,
        }
    }

    /// Begins the series again, after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns the next wait and moves on. [`Backoff::wait`] is the same with a stop.
    pub fn step(&mut self) -> Duration {
        let wait = self.after(self.failures);
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// Returns the wait after this many failures before the last one, for a caller that counts
    /// them.
    #[must_use]
    pub fn after(&self, failures: u32) -> Duration {
        let doubled = 2u32
            .checked_pow(failures)
            .and_then(|n| self.first.checked_mul(n));
        let wait = doubled.unwrap_or(self.limit).min(self.limit);
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
        assert!(backoff.after(1) > first && backoff.after(u32::MAX) <= limit);
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
