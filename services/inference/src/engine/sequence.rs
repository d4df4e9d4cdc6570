//! One answer while it is written: what it needs from the network next, and what the network's
//! logits do to it. It knows nothing of the other answers.

use std::sync::Arc;
use std::time::Instant;

use togi_model::sampling::Sampler;
use togi_model::{Cache, Engine, Step};
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
    cache: Cache,
    sampler: Sampler,
    answer: Answer,
    /// The length of prompt and answer in tokens at which the answer must end.
    max_len: usize,
    eos: Option<u32>,
    first_token: Option<Instant>,
}

impl Sequence {
    /// Begins the answer to a job.
    ///
    /// # Errors
    /// [`Error::Network`] for options that the sampler refuses.
    pub(crate) fn new(
        job: Job,
        engine: &Engine,
        tokenizer: &Arc<Tokenizer>,
        eos: Option<u32>,
    ) -> Result<Self> {
        let max_positions = engine.config().max_position_embeddings;
        Ok(Self {
            cache: engine.cache(),
            sampler: Sampler::new(&job.options.sampling, &job.prompt).map_err(Error::Network)?,
            answer: Answer::new(tokenizer.decoder(), job.options.stop.clone()),
            max_len: max_len(job.prompt.len(), &job.options, max_positions),
            eos,
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
            unread: self.job.prompt.len().saturating_sub(self.cache.len()),
        }
    }

    /// Whether the client has gone away.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.job.is_abandoned()
    }

    /// Returns what the network reads next: at most `tokens` ids of the prompt, or the last token.
    pub(crate) fn step(&mut self, tokens: usize) -> Step<'_> {
        let (ids, read) = (self.sampler.history(), self.cache.len());
        let end = ids.len().min(read + tokens);
        Step {
            ids: &ids[read..end],
            cache: &mut self.cache,
            adapter: self.job.adapter.as_deref().map(ServedAdapter::adapter),
        }
    }

    /// Takes the logits after a step. Returns the end of the answer, or `None` if it goes on.
    pub(crate) fn advance(&mut self, logits: &mut [f32]) -> Result<Option<Finished>> {
        if self.cache.len() < self.sampler.history().len() {
            return Ok(None); // A part of the prompt is still unread.
        }
        let id = self.sampler.next(logits).map_err(Error::Network)?;
        self.first_token.get_or_insert_with(Instant::now);
        if Some(id) == self.eos {
            return Ok(Some(self.finish(Some(id), Reason::Eos)));
        }
        let progress = self.answer.push(id);
        self.show(progress.piece);
        if progress.stopped {
            let rest = self.answer.unreported();
            self.show(rest);
            return Ok(Some(self.finished(Reason::Stop)));
        }
        if self.sampler.history().len() >= self.max_len {
            return Ok(Some(self.finish(None, Reason::Length)));
        }
        Ok(None)
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
            completion_tokens: self.sampler.generated(),
            to_first_token: self.first_token.unwrap_or(now) - self.job.arrived,
            total: now - self.job.arrived,
        }
    }
}

/// Returns the length of prompt and answer in tokens at which the answer must end.
fn max_len(prompt: usize, options: &Options, max_positions: usize) -> usize {
    prompt
        .saturating_add(options.sampling.max_new_tokens as usize)
        .min(max_positions)
}

/// Returns the most events that an answer can have: the start, a piece for each token, the rest of
/// the text, and the end.
pub(crate) fn max_events(prompt: usize, options: &Options, max_positions: usize) -> usize {
    max_len(prompt, options, max_positions).saturating_sub(prompt) + 3
}
