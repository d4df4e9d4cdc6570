//! The events of a request's answers, in the order in which a client receives them.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, stream};
use togi_common::Generation;
use togi_model::logprobs::Logprobs;
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// The events of a request's answers: one start, then of each answer a piece for each token and an
/// end. An error ends all.
pub(crate) type Events = Pin<Box<dyn Stream<Item = Result<Event>> + Send>>;

/// One event of one of the answers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// The answer's number.
    pub(crate) choice: u32,
    pub(crate) kind: Kind,
}

/// What an event tells.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Started(Started),
    /// Of the prompt's next tokens.
    PromptLogprobs(Vec<Logprobs>),
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

/// A token of the answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    /// Text that is now certain to be part of the answer; empty while it is held back.
    pub(crate) text: String,
    pub(crate) id: u32,
    /// If the request asks for it.
    pub(crate) logprobs: Option<Logprobs>,
}

/// Why and when an answer ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Finished {
    pub(crate) reason: Reason,
    pub(crate) prompt_tokens: usize,
    /// Those of the prompt that were not read, because their keys and values were kept.
    pub(crate) cached_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) to_first_token: Duration,
    pub(crate) total: Duration,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The model drew an end-of-sequence token, or one that the request names.
    Eos,
    /// A stop text was found.
    Stop,
    /// The answer has as many tokens as the request or the model allows.
    Length,
    /// Its time was over.
    Deadline,
}

impl Reason {
    /// Returns the word for labels and spans.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Deadline => "deadline",
        }
    }
}

/// Returns the events of a request's answers that arrive on a channel. An answer that breaks off
/// before its end is an error, never a short answer.
pub(crate) fn stream(events: mpsc::Receiver<Result<Event>>, answers: u32) -> Events {
    // No answer is left after the last event.
    Box::pin(stream::unfold((events, answers), |state| async move {
        let (mut events, mut left) = state;
        if left == 0 {
            return None;
        }
        let broken = || Err(Error::Broken("the engine ended before the answer".into()));
        let event = events.recv().await.unwrap_or_else(broken);
        match &event {
            Ok(event) => left -= u32::from(matches!(event.kind, Kind::Finished(_))),
            Err(_) => left = 0,
        }
        Some((event, (events, left)))
    }))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    const FINISHED: Finished = Finished {
        reason: Reason::Length,
        prompt_tokens: 1,
        cached_tokens: 0,
        completion_tokens: 1,
        to_first_token: Duration::ZERO,
        total: Duration::ZERO,
    };

    fn event(choice: u32, kind: Kind) -> Result<Event> {
        Ok(Event { choice, kind })
    }

    #[tokio::test]
    async fn nothing_follows_the_last_end() {
        for answers in [1, 2] {
            let (sender, receiver) = mpsc::channel(4);
            for choice in 0..3 {
                let end = event(choice, Kind::Finished(FINISHED));
                sender.try_send(end).unwrap();
            }
            let events: Vec<_> = stream(receiver, answers).collect().await;
            assert_eq!(events.len(), answers as usize);
        }
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_an_error() {
        let (sender, receiver) = mpsc::channel(4);
        let piece = Piece {
            text: "あ".into(),
            id: 1,
            logprobs: None,
        };
        sender.try_send(event(0, Kind::Piece(piece))).unwrap();
        // The other answer has ended.
        sender.try_send(event(1, Kind::Finished(FINISHED))).unwrap();
        drop(sender);
        let events: Vec<_> = stream(receiver, 2).collect().await;
        assert!(matches!(events[..], [Ok(_), Ok(_), Err(Error::Broken(_))]));
    }
}
