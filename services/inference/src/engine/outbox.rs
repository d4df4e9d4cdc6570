//! Events on their way to clients. To wake a client takes time, and a GPU would wait for it; so a
//! round's events are sent once the device computes the next round.

use tokio::sync::mpsc::Sender;

use crate::error::Result;
use crate::event::Event;

/// Events that are still to be sent, in order.
#[derive(Default)]
pub(crate) struct Outbox {
    events: Vec<(Sender<Result<Event>>, Result<Event>)>,
}

impl Outbox {
    /// Adds an event for a client.
    pub(crate) fn put(&mut self, client: &Sender<Result<Event>>, event: Result<Event>) {
        self.events.push((client.clone(), event));
    }

    /// Sends the events.
    pub(crate) fn send(&mut self) {
        for (client, event) in self.events.drain(..) {
            // The channel has room; a closed one is noticed before the next round.
            let _ = client.try_send(event);
        }
    }
}
