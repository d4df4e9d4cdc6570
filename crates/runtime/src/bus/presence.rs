//! Whether NATS answers: told by the connection, and by a question that is asked every second,
//! because a server may hold its connections and answer nothing.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::{Error, Result};
use crate::life::deadline::Deadline;
use crate::life::stop::Stopper;

/// How long calls wait for NATS before they go on without it.
const MOMENT: Duration = Duration::from_secs(2);
/// Time between two questions.
const PERIOD: Duration = Duration::from_secs(1);

/// An absence of NATS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Away {
    /// Since when.
    pub since: Timestamp,
    /// Why, for example "connection refused".
    pub reason: String,
    begun: Instant,
    /// Whether there is a connection, on which nothing is answered.
    is_connected: bool,
}

impl Away {
    /// Returns an absence that begins now, without a connection.
    pub(super) fn unconnected(reason: &str) -> Self {
        Self {
            since: Timestamp::now(),
            reason: reason.to_owned(),
            begun: Instant::now(),
            is_connected: false,
        }
    }
}

impl From<Away> for Error {
    fn from(away: Away) -> Self {
        let Away { since, reason, .. } = away;
        Error::unavailable(format!("NATS has not answered since {since:.0}: {reason}"))
    }
}

/// The connection, and whether it answers.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(super) js: jetstream::Context,
    pub(super) away: watch::Receiver<Option<Away>>,
}

impl Link {
    /// Waits a moment for the connection. The client keeps what is sent without one and sends it
    /// at the next connection, long after the sender was told that it failed.
    ///
    /// # Errors
    /// `Unavailable`, and nothing may be sent.
    pub(crate) async fn connected(&self) -> Result<()> {
        let connected = |away: &Option<Away>| away.as_ref().is_none_or(|away| away.is_connected);
        self.wait(connected).await
    }

    /// Waits a moment for answers.
    async fn here(&self) -> Result<()> {
        self.wait(Option::is_none).await
    }

    async fn wait(&self, holds: impl Fn(&Option<Away>) -> bool) -> Result<()> {
        let mut away = self.away.clone();
        let Some(absence) = away.borrow().clone() else {
            return Ok(());
        };
        // The sender lives as long as the bus.
        let held = timeout_at(absence.begun + MOMENT, away.wait_for(|away| holds(away))).await;
        match held {
            Ok(_) => Ok(()),
            Err(_) => Err(absence.into()),
        }
    }

    /// Runs work that needs NATS, for a moment and within the time of the current call.
    ///
    /// # Errors
    /// The work's; `Unavailable` if NATS does not answer in time. What the work has sent may still
    /// take effect.
    pub(crate) fn in_a_moment<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> impl Future<Output = Result<T>> {
        // Boxed here, because each async function would hold it twice.
        let work = Box::pin(work);
        async move {
            let left = Deadline::current().map_or(MOMENT, |deadline| deadline.left() / 2);
            let patient = async {
                self.here().await?;
                work.await
            };
            let done = timeout(left.min(MOMENT), patient).await;
            done.unwrap_or_else(|_| {
                let away = self.away.borrow().clone();
                let late = || Error::unavailable("NATS does not answer in time");
                Err(away.map_or_else(late, Into::into))
            })
        }
    }
}

/// Keeps `away` up to date until the stop.
pub(super) async fn observe(
    js: jetstream::Context,
    mut connections: watch::Receiver<u64>,
    away: watch::Sender<Option<Away>>,
    stopper: Stopper,
) {
    loop {
        let answers = answers(&js).await;
        let is_connected = js.client().connection_state() == State::Connected;
        away.send_if_modified(|away| note(away, answers, is_connected));
        tokio::select! {
            () = stopper.stopped() => return,
            () = tokio::time::sleep(PERIOD) => {}
            Ok(()) = connections.changed() => {}
        }
    }
}

/// Returns whether this changes what is known.
fn note(
    away: &mut Option<Away>,
    answers: std::result::Result<(), &str>,
    is_connected: bool,
) -> bool {
    match (answers, &mut *away) {
        (Ok(()), None) => false,
        (Ok(()), Some(_)) => {
            *away = None;
            true
        }
        (Err(_), Some(known)) if known.is_connected == is_connected => false,
        (Err(reason), Some(known)) => {
            known.is_connected = is_connected;
            reason.clone_into(&mut known.reason);
            true
        }
        (Err(reason), None) => {
            let absence = Away {
                is_connected,
                ..Away::unconnected(reason)
            };
            *away = Some(absence);
            true
        }
    }
}

async fn answers(js: &jetstream::Context) -> std::result::Result<(), &'static str> {
    if js.client().connection_state() != State::Connected {
        return Err("it is not connected");
    }
    match timeout(MOMENT, js.query_account()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err("JetStream does not answer"),
        Err(_) => Err("the server is connected and does not answer"),
    }
}
