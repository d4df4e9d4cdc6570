//! How quickly a queue drains: the time in which one request more begins, measured over the last
//! half minute in which requests waited. The pool of adapters measures so the time in which one
//! more comes out of use.

use std::time::{Duration, Instant};

/// After this time of waiting, what was measured counts for a third.
const MEMORY: f64 = 30.0;
/// A time to come back is neither shorter nor longer.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// A measured rate.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Drain {
    /// The last round after which requests still waited.
    last: Option<Instant>,
    /// Seconds in which requests waited, and those that began meanwhile; both fade.
    seconds: f64,
    begun: f64,
}

impl Drain {
    /// Notes a round: how many requests begin, and how many still wait.
    pub(crate) fn note(&mut self, now: Instant, begun: usize, waiting: usize) {
        let since = std::mem::replace(&mut self.last, (waiting > 0).then_some(now));
        // Requests that found a place at once say nothing.
        let Some(since) = since else { return };
        let seconds = (now - since).as_secs_f64();
        let fade = (-seconds / MEMORY).exp();
        self.seconds = self.seconds * fade + seconds;
        self.begun = self.begun * fade + begun as f64;
    }

    /// Whether requests still waited after the last round.
    pub(crate) fn is_blocked(&self) -> bool {
        self.last.is_some()
    }

    /// Returns when to come back: after as many requests as wait now have begun.
    pub(crate) fn come_back(&self, waiting: usize) -> Duration {
        let needed = waiting.max(1) as f64 * self.seconds / self.begun;
        let needed = Duration::try_from_secs_f64(needed);
        needed.map_or(SHORTEST, |needed| needed.clamp(SHORTEST, LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_comes_back_when_as_many_as_wait_have_begun() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut drain = Drain::default();
        assert_eq!(drain.come_back(100), SHORTEST);
        // One request begins every 2 seconds.
        for second in 0..500 {
            drain.note(at(second), usize::from(second % 2 == 0), 5);
        }
        let seconds = drain.come_back(10).as_secs_f64();
        assert!((19.0..21.0).contains(&seconds), "{seconds}");
        assert_eq!(drain.come_back(1_000_000), LONGEST);
        // A time in which nobody waits changes nothing.
        drain.note(at(500), 0, 0);
        drain.note(at(9000), 1, 0);
        assert!((drain.come_back(10).as_secs_f64() - seconds).abs() < 1.0);
        // Half the rate is found within a few times the memory.
        for second in 9001..9300 {
            drain.note(at(second), usize::from(second % 4 == 0), 5);
        }
        let seconds = drain.come_back(10).as_secs_f64();
        assert!((36.0..44.0).contains(&seconds), "{seconds}");
    }
}
