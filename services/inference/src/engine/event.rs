//! The events of one answer, in the order in which a client receives them.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, stream};
use togi_common::Generation;
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// The events of an answer: one `Started`, any number of pieces, then one `Finished` or an error.
pub(crate) type Events = Pin<Box<dyn Stream<Item = Result<Event>> + Send>>;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    Started(Started),
    Piece(Piece),
    Finished(Finished),
}

/// Sent before the first token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Started {
    /// The generation that answers; `None` for the base alone.
    pub(crate) generation: Option<Generation>,
    pub(crate) prompt_tokens: usize,
    /// The seed of the draw, chosen here if the request has none.
    pub(crate) seed: u64,
}

/// Text that is certain to be part of the answer, and the ids since the last piece, including those
/// whose text is still held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
}

/// Why and when an answer ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Finished {
    pub(crate) reason: Reason,
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) to_first_token: Duration,
    pub(crate) total: Duration,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The model drew its end-of-sequence token.
    Eos,
    /// A stop text was found.
    Stop,
    /// The answer has as many tokens as the request or the model allows.
    Length,
}

impl Reason {
    /// Returns the word for labels and spans.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Returns the events that arrive on a channel. An answer that breaks off before its end is an
/// error, never a short answer.
pub(crate) fn stream(events: mpsc::Receiver<Result<Event>>) -> Events {
    // `None` after the last event.
    Box::pin(stream::unfold(Some(events), |events| async move {
        let mut events = events?;
        let broken = || Err(Error::Broken("the engine ended before the answer".into()));
        let event = events.recv().await.unwrap_or_else(broken);
        let is_last = matches!(event, Ok(Event::Finished(_)) | Err(_));
        Some((event, (!is_last).then_some(events)))
    }))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    const FINISHED: Finished = Finished {
        reason: Reason::Length,
        prompt_tokens: 1,
        completion_tokens: 1,
        to_first_token: Duration::ZERO,
        total: Duration::ZERO,
    };

    #[tokio::test]
    async fn nothing_follows_the_end() {
        let (sender, receiver) = mpsc::channel(4);
        for _ in 0..2 {
            sender.try_send(Ok(Event::Finished(FINISHED))).unwrap();
        }
        assert_eq!(stream(receiver).count().await, 1);
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_an_error() {
        let (sender, receiver) = mpsc::channel(4);
        let piece = Piece {
            text: "あ".into(),
            ids: vec![1],
        };
        sender.try_send(Ok(Event::Piece(piece))).unwrap();
        drop(sender);
        let events: Vec<_> = stream(receiver).collect().await;
        assert!(matches!(
            events[..],
            [Ok(Event::Piece(_)), Err(Error::Broken(_))]
        ));
    }
}
