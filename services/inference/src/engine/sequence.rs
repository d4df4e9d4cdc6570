//! One answer while it is written: its tokens become text and events for its client. It knows
//! nothing of the other answers.

use std::sync::Arc;
use std::time::Instant;

use togi_model::Config;
use togi_model::decode::{self, Choice, Decoder, End, Share};
use togi_tokens::Tokenizer;
use tokio::sync::mpsc;
use tracing::Span;

use crate::engine::answer::Answer;
use crate::engine::event::{Event, Finished, Piece, Reason};
use crate::engine::load::{Permit, Ticket};
use crate::engine::options::Options;
use crate::engine::scheduler::Entry;
use crate::error::{Error, Result};
use crate::served_adapter::ServedAdapter;

/// A request that is ready for the engine.
pub(crate) struct Job {
    /// The prompt's ids: at least one, fewer than the model's longest sequence.
    pub(crate) prompt: Vec<u32>,
    pub(crate) options: Options,
    /// `None` for the base alone.
    pub(crate) adapter: Option<Arc<ServedAdapter>>,
    pub(crate) arrived: Instant,
    /// Has room for every event of this answer, so that the engine never waits for a client.
    pub(crate) events: mpsc::Sender<Result<Event>>,
    /// Given back when the answer has ended.
    pub(crate) permit: Permit,
    /// The request's span.
    pub(crate) span: Span,
}

impl Job {
    pub(crate) fn ticket(&self) -> Ticket {
        self.permit.ticket()
    }

    /// Returns the facts for the scheduler while this waits.
    pub(crate) fn entry(&self) -> Entry {
        Entry {
            ticket: self.ticket(),
            unread: self.prompt.len(),
        }
    }

    /// Whether the client has gone away.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Sends an error as the end of an answer that has not begun, once its permit is free again.
    pub(crate) fn fail(self, error: Error) {
        let events = self.events.clone();
        drop(self);
        // The client may have gone away.
        let _ = events.try_send(Err(error));
    }
}

/// An answer that progresses.
pub(crate) struct Sequence {
    job: Job,
    decoding: decode::Sequence,
    answer: Answer,
    first_token: Option<Instant>,
}

impl Sequence {
    /// Begins the answer to a job.
    ///
    /// # Errors
    /// [`Error::Network`] for options that the sampler refuses.
    pub(crate) fn new(job: Job, decoder: &Decoder<'_>, tokenizer: &Arc<Tokenizer>) -> Result<Self> {
        let served = job.adapter.as_deref();
        let adapter = served.map(|served| served.adapter().clone());
        Ok(Self {
            decoding: decoder
                .begin(&job.prompt, adapter, &job.options.sampling)
                .map_err(Error::Network)?,
            answer: Answer::new(tokenizer.decoder(), job.options.stop.clone()),
            first_token: None,
            job,
        })
    }

    pub(crate) fn ticket(&self) -> Ticket {
        self.job.ticket()
    }

    /// Returns the facts for the scheduler.
    pub(crate) fn entry(&self) -> Entry {
        Entry {
            ticket: self.ticket(),
            unread: self.decoding.unread(),
        }
    }

    /// Whether the client has gone away.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.job.is_abandoned()
    }

    /// Returns the sequence's share of a round: at most `tokens` of its prompt, or its last token.
    pub(crate) fn share(&mut self, tokens: usize) -> Share<'_> {
        Share {
            sequence: &mut self.decoding,
            tokens,
        }
    }

    /// Takes the next token. Returns the end of the answer, or `None` if it goes on.
    pub(crate) fn advance(&mut self, Choice { id, end }: Choice) -> Option<Finished> {
        self.first_token.get_or_insert_with(Instant::now);
        if end == Some(End::Eos) {
            return Some(self.finish(Some(id), Reason::Eos));
        }
        let progress = self.answer.push(id);
        self.show(progress.piece);
        if progress.stopped {
            let rest = self.answer.unreported();
            self.show(rest);
            return Some(self.finished(Reason::Stop));
        }
        end.map(|_| self.finish(None, Reason::Length))
    }

    /// Sends the end to the client, once the cache and the permit are free again: a client that
    /// asks again at once finds them free.
    pub(crate) fn end(self, result: Result<Finished>) {
        let events = self.job.events.clone();
        drop(self);
        // The client may have gone away.
        let _ = events.try_send(result.map(Event::Finished));
    }

    pub(crate) fn span(&self) -> &Span {
        &self.job.span
    }

    fn finish(&mut self, eos: Option<u32>, reason: Reason) -> Finished {
        let last = self.answer.finish(eos);
        self.show(last.piece);
        self.finished(if last.stopped { Reason::Stop } else { reason })
    }

    fn show(&self, piece: Option<Piece>) {
        if let Some(piece) = piece {
            // The channel has room; a closed one is noticed before the next round.
            let _ = self.job.events.try_send(Ok(Event::Piece(piece)));
        }
    }

    fn finished(&self, reason: Reason) -> Finished {
        let now = Instant::now();
        Finished {
            reason,
            prompt_tokens: self.job.prompt.len(),
            completion_tokens: self.decoding.generated(),
            to_first_token: self.first_token.unwrap_or(now) - self.job.arrived,
            total: now - self.job.arrived,
        }
    }
}

/// Returns the most events that an answer can have: the start, a piece for each token, the rest of
/// the text, and the end.
pub(crate) fn max_events(prompt: usize, options: &Options, config: &Config) -> usize {
    let max_len = decode::max_len(prompt, &options.sampling, config);
    max_len.saturating_sub(prompt) + 3
}
