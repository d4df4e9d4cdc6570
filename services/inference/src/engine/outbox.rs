//! What is told of a round: events for clients, and times for the metrics. Waking clients takes
//! time that a GPU would wait, so it is told once the device computes the next round.

use tokio::sync::mpsc::Sender;

use crate::error::Result;
use crate::event::Event;
use crate::metrics::{Metrics, Tick};

/// What is still to be told, in order.
#[derive(Default)]
pub(crate) struct Outbox {
    events: Vec<(Sender<Result<Event>>, Result<Event>)>,
    ticks: Vec<Tick>,
}

impl Outbox {
    /// Adds an event for a client.
    pub(crate) fn put(&mut self, client: &Sender<Result<Event>>, event: Result<Event>) {
        self.events.push((client.clone(), event));
    }

    /// Adds the time of a token.
    pub(crate) fn note(&mut self, tick: Tick) {
        self.ticks.push(tick);
    }

    /// Tells all of it.
    pub(crate) fn send(&mut self, metrics: &Metrics) {
        for (client, event) in self.events.drain(..) {
            // The channel has room; a closed one is noticed before the next round.
            let _ = client.try_send(event);
        }
        self.ticks.drain(..).for_each(|tick| metrics.token(&tick));
    }
}
