//! Readiness: a process is ready while no latch is held and it is not stopping. The admin port and
//! gRPC health both report it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Whether the process can do its work: true when no latch is held and it is not stopping.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    latches: BTreeMap<String, usize>,
    /// The parts that are away while the process works without them.
    away: BTreeMap<String, String>,
    stopping: bool,
}

impl Waiting {
    fn ready(&self) -> bool {
        self.latches.is_empty() && !self.stopping
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Returns a readiness without latches: ready.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Waiting::default())))
    }

    /// Returns a latch, named for the awaited part. The process is not ready until it is dropped.
    #[must_use = "dropping the latch says that the work is done"]
    pub fn latch(&self, name: impl Into<String>) -> Latch {
        let name = name.into();
        self.0
            .send_modify(|waiting| *waiting.latches.entry(name.clone()).or_default() += 1);
        Latch {
            readiness: self.clone(),
            name,
        }
    }

    /// Returns whether the process is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.borrow().ready()
    }

    /// Returns the names of the latches that are held.
    #[must_use]
    pub fn waiting_for(&self) -> Vec<String> {
        self.0.borrow().latches.keys().cloned().collect()
    }

    /// Says that a part is away, and why; `None` once it is back. The process stays ready, because
    /// it goes on without the part.
    pub fn note(&self, part: &str, reason: Option<String>) {
        self.0.send_if_modified(|waiting| {
            match reason {
                Some(reason) => waiting.away.insert(part.to_owned(), reason),
                None => waiting.away.remove(part),
            };
            false
        });
    }

    /// Returns the parts that are away, each with its reason.
    #[must_use]
    pub fn away(&self) -> Vec<String> {
        let waiting = self.0.borrow();
        let line = |(part, reason): (&String, &String)| format!("{part}: {reason}");
        waiting.away.iter().map(line).collect()
    }

    /// Marks the process as stopping. It is never ready again.
    pub fn stopping(&self) {
        self.0.send_modify(|waiting| waiting.stopping = true);
    }

    /// Waits until the process is ready.
    pub async fn ready(&self) {
        self.until(true).await;
    }

    /// Waits until readiness has this value.
    pub async fn until(&self, ready: bool) {
        let mut receiver = self.0.subscribe();
        // The channel cannot close, because the sender lives in `self`.
        let _ = receiver.wait_for(|waiting| waiting.ready() == ready).await;
    }
}

/// Holds readiness back until it is dropped.
#[derive(Debug)]
pub struct Latch {
    readiness: Readiness,
    name: String,
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.readiness.0.send_modify(|waiting| {
            if let Some(count) = waiting.latches.get_mut(&self.name) {
                *count -= 1;
                if *count == 0 {
                    waiting.latches.remove(&self.name);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_every_latch_is_dropped_and_never_after_stopping() {
        let readiness = Readiness::new();
        let (one, two) = (readiness.latch("store"), readiness.latch("store"));
        drop(one);
        assert_eq!(readiness.waiting_for(), ["store"]);
        assert!(!readiness.is_ready());
        drop(two);
        readiness.ready().await;
        readiness.stopping();
        readiness.until(false).await;
        assert!(!readiness.is_ready());
    }

    #[test]
    fn a_part_that_is_away_is_named_and_holds_nothing_back() {
        let readiness = Readiness::new();
        readiness.note("NATS", Some("connection refused".into()));
        assert!(readiness.is_ready());
        assert_eq!(readiness.away(), ["NATS: connection refused"]);
        readiness.note("NATS", None);
        assert!(readiness.away().is_empty());
    }
}
