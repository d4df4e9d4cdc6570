//! One answer while it is written: what it needs from the network next, and what the network's logits do to it. Knows nothing of
//! the other answers.

use std::sync::Arc;
use std::time::Instant;

use togi_model::sampling::Sampler;
use togi_model::{Cache, Engine, Step};
use togi_tokens::Tokenizer;
use tokio::sync::mpsc;
use tracing::Span;

use crate::engine::answer::Answer;
use crate::engine::event::{Event, Finished, Piece, Reason};
use crate::engine::load::Permit;
use crate::engine::options::Options;
use crate::error::{Error, Result};
use crate::served_adapter::ServedAdapter;

/// A request that is ready for the engine.
pub(crate) struct Job {
    /// The prompt's ids: at least one, fewer than the model's longest sequence.
    pub(crate) prompt: Vec<u32>,
    pub(crate) options: Options,
    /// None: the base alone.
    pub(crate) adapter: Option<Arc<ServedAdapter>>,
    pub(crate) arrived: Instant,
    /// Has room for every event that this answer can have, so that the engine never waits for a client.
    pub(crate) events: mpsc::Sender<Result<Event>>,
    /// Given back when the answer has ended.
    pub(crate) _permit: Permit,
    /// The request's span.
    pub(crate) span: Span,
}

/// An answer that progresses.
pub(crate) struct Sequence {
    job: Job,
    cache: Cache,
    sampler: Sampler,
    answer: Answer,
    /// Tokens of prompt and answer at which the answer must end.
    longest: usize,
    eos: Option<u32>,
    first_token: Option<Instant>,
}

impl Sequence {
    pub(crate) fn new(
        job: Job,
        network: &Engine,
        tokenizer: &Arc<Tokenizer>,
        eos: Option<u32>,
    ) -> Result<Sequence> {
        let max_positions = network.config().max_position_embeddings;
        Ok(Sequence {
            cache: network.cache(),
            sampler: Sampler::new(&job.options.sampling, &job.prompt).map_err(Error::Network)?,
            answer: Answer::new(tokenizer.decoder(), job.options.stop.clone()),
            longest: longest(job.prompt.len(), &job.options, max_positions),
            eos,
            first_token: None,
            job,
        })
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.job.events.is_closed()
    }

    /// Returns what the network shall read next: at most `chunk` ids of the prompt, or the last token.
    pub(crate) fn step(&mut self, chunk: usize) -> Step<'_> {
        let (ids, read) = (self.sampler.history(), self.cache.len());
        let end = ids.len().min(read + chunk);
        Step {
            ids: &ids[read..end],
            cache: &mut self.cache,
            adapter: self.job.adapter.as_deref().map(ServedAdapter::adapter),
        }
    }

    /// Takes what the network said after the step; returns why the answer has ended, if it has.
    pub(crate) fn advance(&mut self, logits: &mut [f32]) -> Result<Option<Finished>> {
        if self.cache.len() < self.sampler.history().len() {
            return Ok(None); // More of the prompt is to be read.
        }
        let id = self.sampler.next(logits).map_err(Error::Network)?;
        self.first_token.get_or_insert_with(Instant::now);
        if Some(id) == self.eos {
            return Ok(Some(self.finish(Some(id), Reason::Eos)));
        }
        let progress = self.answer.push(id);
        self.show(progress.piece);
        if progress.stopped {
            let rest = self.answer.leave();
            self.show(rest);
            return Ok(Some(self.finished(Reason::Stop)));
        }
        if self.sampler.history().len() >= self.longest {
            return Ok(Some(self.finish(None, Reason::Length)));
        }
        Ok(None)
    }

    /// Says the end to the client, once everything that the answer held is free again: who asks anew at once finds it so.
    pub(crate) fn end(self, result: Result<Finished>) {
        let events = self.job.events.clone();
        drop(self);
        // Nobody may listen any more; then nobody misses it.
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
            // Full cannot be; closed is seen before the next turn.
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

/// Returns the length of prompt and answer at which the answer must end.
fn longest(prompt: usize, options: &Options, max_positions: usize) -> usize {
    prompt
        .saturating_add(options.sampling.max_new_tokens as usize)
        .min(max_positions)
}

/// Returns the most events that an answer can have: the start, a piece for each token, the rest of
/// the text, and the end.
pub(crate) fn max_events(prompt: usize, options: &Options, max_positions: usize) -> usize {
    longest(prompt, options, max_positions).saturating_sub(prompt) + 3
}
