//! The rounds of a task that brings to NATS what the store has and NATS may lack. They need no
//! event: a loss in NATS is not reported.

use std::time::Duration;

use tokio::sync::watch;

use crate::bus::Bus;
use crate::bus::presence::Away;
use crate::life::backoff::Backoff;
use crate::life::stop::Stopper;

const BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));

/// The rounds of one task.
#[derive(Debug)]
pub struct Rounds {
    away: watch::Receiver<Option<Away>>,
    undone: watch::Receiver<u64>,
    period: Duration,
    /// The time until the next round; `None` before the first one.
    pause: Option<Duration>,
    backoff: Backoff,
}

impl Bus {
    /// Returns the rounds of a task: the first one at once, then one in each period, and one
    /// whenever NATS is back or [`Bus::leave_undone`] is called.
    #[must_use]
    pub fn rounds(&self, period: Duration) -> Rounds {
        Rounds {
            away: self.presence(),
            undone: self.undone(),
            period,
            pause: None,
            backoff: BACKOFF,
        }
    }
}

impl Rounds {
    /// Waits for the next round, in which NATS answers. Returns false at the stop.
    pub async fn next(&mut self, stopper: &Stopper) -> bool {
        stopper.run(self.due()).await.is_some()
    }

    /// Brings the next round forward, because this one has failed.
    pub fn failed(&mut self) {
        self.pause = Some(self.backoff.step());
    }

    async fn due(&mut self) {
        if let Some(pause) = self.pause {
            let mut away = self.away.clone();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = until(&mut away, Option::is_some) => {}
                _ = self.undone.changed() => {}
            }
        }
        if self.pause.replace(self.period) == Some(self.period) {
            self.backoff.reset();
        }
        self.undone.mark_unchanged();
        until(&mut self.away, Option::is_none).await;
    }
}

async fn until(away: &mut watch::Receiver<Option<Away>>, holds: fn(&Option<Away>) -> bool) {
    // The sender lives as long as the bus, which a task has.
    let _ = away.wait_for(holds).await;
}
