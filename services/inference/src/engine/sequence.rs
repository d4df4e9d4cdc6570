//! One answer while it is written: its tokens become text and events for its client. It knows
//! nothing of the other answers.

use std::iter;
use std::sync::Arc;
use std::time::Instant;

use togi_model::Config;
use togi_model::decode::{self, Choice, Decoder, End, Member};
use togi_tokens::Tokenizer;
use tokio::sync::mpsc;
use tracing::Span;

use crate::engine::answer::Answer;
use crate::engine::options::Options;
use crate::engine::outbox::Outbox;
use crate::engine::scheduler::Active;
use crate::engine::stop_text::Scan;
use crate::engine::terms::Terms;
use crate::error::{Error, Result};
use crate::event::{Event, Finished, Kind, Piece, Reason};
use crate::metrics::Tick;
use crate::pool::ReadyAdapter;

/// A request that is ready for the engine.
pub(crate) struct Job {
    /// The prompt's ids: at least one, fewer than the model's longest sequence.
    pub(crate) prompt: Arc<[u32]>,
    pub(crate) options: Options,
    /// The answer's number among those of its request.
    pub(crate) choice: u32,
    /// `None` for the base alone.
    pub(crate) adapter: Option<Arc<ReadyAdapter>>,
    pub(crate) terms: Terms,
    /// Has room for every event of the request, so that the engine never waits for a client.
    pub(crate) events: mpsc::Sender<Result<Event>>,
    /// The request's span.
    pub(crate) span: Span,
}

impl Job {
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
    /// The jobs of the answers that begin once the prompt is read.
    others: Vec<Job>,
    decoding: decode::Sequence,
    answer: Answer,
    /// The last token, if its text has not been made.
    unshown: Option<Choice>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Sequence {
    /// Begins the answer to a job. The others, which have its prompt and its adapter, begin with
    /// [`Sequence::fork`].
    ///
    /// # Errors
    /// [`Error::Network`] for options that the sampler refuses.
    pub(crate) fn new(
        mut job: Job,
        others: Vec<Job>,
        decoder: &Decoder<'_>,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        job.terms.permit.begin();
        let ready = job.adapter.as_deref();
        let adapter = ready.map(|ready| ready.adapter().clone());
        let mut decoding = decoder
            .begin(&job.prompt, adapter, &job.options.sampling)
            .map_err(Error::Network)?;
        if !others.is_empty() {
            decoding.keep_for_forks();
        }
        let sequence = Self::over(decoding, job, tokenizer);
        Ok(Self { others, ..sequence })
    }

    fn over(decoding: decode::Sequence, job: Job, tokenizer: &Tokenizer) -> Self {
        Self {
            decoding,
            answer: Answer::new(tokenizer.decoder(), job.options.stop.clone()),
            unshown: None,
            first_token: None,
            last_token: None,
            others: Vec::new(),
            job,
        }
    }

    /// Begins the other answers, after the pass that read the last of the prompt. Returns each with
    /// its first token.
    ///
    /// # Errors
    /// [`Error::Network`] as [`Decoder::fork`].
    pub(crate) fn fork(
        &mut self,
        decoder: &Decoder<'_>,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<(Self, Choice)>> {
        let others = std::mem::take(&mut self.others).into_iter();
        let forks = others.map(|job| {
            let fork = decoder.fork(&self.decoding, &job.options.sampling);
            let (decoding, choice) = fork.map_err(Error::Network)?;
            Ok((Self::over(decoding, job, tokenizer), choice))
        });
        forks.collect()
    }

    /// Goes on after what another sequence has read of its prompt meanwhile.
    pub(crate) fn find_prefix(&mut self, decoder: &Decoder<'_>) {
        decoder.find_prefix(&mut self.decoding);
    }

    /// Returns the tokens of its prompt that were not read, with the first token of the answer; 0
    /// with the next ones.
    pub(crate) fn found_now(&self) -> usize {
        let is_first = self.first_token.is_none();
        if is_first { self.decoding.found() } else { 0 }
    }

    /// Returns how many answers it stands for: with those that have not begun.
    pub(crate) fn places(&self) -> usize {
        1 + self.others.len()
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.job.terms
    }

    /// Returns the facts for the scheduler.
    pub(crate) fn active(&self) -> Active {
        let (read, unread) = (self.decoding.read(), self.decoding.unread());
        self.job.terms.active(read, unread, self.places())
    }

    /// Whether the client has gone away.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.job.is_abandoned()
    }

    /// Takes its share of a round, and returns it; without one the round passes the prompt over.
    pub(crate) fn take(&mut self, share: Option<&usize>) -> Option<usize> {
        if share.is_none() {
            self.job.terms.passed_over += 1;
        }
        share.copied()
    }

    /// Notes that a token has come now. Returns the time since the last one, or for the first since
    /// the request's arrival.
    pub(crate) fn tick(&mut self) -> Tick {
        let now = Instant::now();
        self.first_token.get_or_insert(now);
        match self.last_token.replace(now) {
            None => Tick::First(now - self.job.terms.arrived),
            Some(last) => Tick::Next(now - last),
        }
    }

    /// Ends the answer where it is, because its time is over; text that is held back is left out.
    pub(crate) fn give_up(&mut self) -> Finished {
        self.finished(Reason::Deadline)
    }

    /// Takes the next token. Returns the end of the answer, or `None` if it goes on. A token that
    /// cannot be the last one is only noted, for [`Sequence::show_written`].
    pub(crate) fn advance(&mut self, choice: Choice, outbox: &mut Outbox) -> Option<Finished> {
        if choice.end.is_none() && self.job.options.stop.is_empty() {
            self.unshown = Some(choice);
            return None;
        }
        self.write(choice, outbox)
    }

    /// Makes the text of a token that was noted.
    pub(crate) fn show_written(&mut self, outbox: &mut Outbox) {
        if let Some(choice) = self.unshown.take() {
            // Without stop texts, only a token ends an answer.
            let _ = self.write(choice, outbox);
        }
    }

    fn write(&mut self, choice: Choice, outbox: &mut Outbox) -> Option<Finished> {
        let Choice { id, logprobs, end } = choice;
        let mut scan = match end {
            // Its text is not a part of the answer.
            Some(End::Eos) => Scan::default(),
            _ => self.answer.push(id),
        };
        if end.is_some() && !scan.stopped {
            let rest = self.answer.finish();
            scan.text += &rest.text;
            scan.stopped = rest.stopped;
        }
        let text = scan.text;
        self.show(Kind::Piece(Piece { text, id, logprobs }), outbox);
        let reason = match end {
            _ if scan.stopped => Reason::Stop,
            None => return None,
            Some(End::Eos) => Reason::Eos,
            Some(End::Length) => Reason::Length,
        };
        Some(self.finished(reason))
    }

    /// Tells the log-probabilities of the part of the prompt that was read, if the request asks for
    /// them.
    pub(crate) fn show_prompt(&mut self, outbox: &mut Outbox) {
        let read = self.decoding.take_prompt_logprobs();
        if !read.is_empty() {
            self.show(Kind::PromptLogprobs(read), outbox);
        }
    }

    /// Puts the end into the outbox, also that of answers that have not begun, once the cache and
    /// the permits are free again: a client that asks again at once finds them free.
    pub(crate) fn end(mut self, result: Result<Finished>, outbox: &mut Outbox) {
        self.show_written(outbox);
        let events = self.job.events.clone();
        let others = self.others.iter().map(|job| job.choice);
        let choices: Vec<u32> = iter::once(self.job.choice).chain(others).collect();
        drop(self);
        match result.map(Kind::Finished) {
            Ok(kind) => choices.into_iter().for_each(|choice| {
                let kind = kind.clone();
                outbox.put(&events, Ok(Event { choice, kind }));
            }),
            Err(error) => outbox.put(&events, Err(error)),
        }
    }

    pub(crate) fn span(&self) -> &Span {
        &self.job.span
    }

    fn show(&self, kind: Kind, outbox: &mut Outbox) {
        let choice = self.job.choice;
        outbox.put(&self.job.events, Ok(Event { choice, kind }));
    }

    fn finished(&self, reason: Reason) -> Finished {
        let now = Instant::now();
        Finished {
            reason,
            prompt_tokens: self.job.prompt.len(),
            cached_tokens: self.decoding.found(),
            completion_tokens: self.decoding.generated(),
            to_first_token: self.first_token.unwrap_or(now) - self.job.terms.arrived,
            total: now - self.job.terms.arrived,
        }
    }
}

impl Member for Sequence {
    fn sequence(&mut self) -> &mut decode::Sequence {
        &mut self.decoding
    }
}

/// Returns the most events that a request can have: the start, the log-probabilities of parts of
/// the prompt, and for each answer a piece for each token and the end.
pub(crate) fn max_events(prompt: usize, options: &Options, config: &Config) -> usize {
    let max_len = decode::max_len(prompt, &options.sampling, config);
    let of_prompt = options.sampling.prompt_logprobs.map_or(0, |_| prompt);
    let of_answer = max_len.saturating_sub(prompt) + 1;
    1 + of_prompt + options.choices as usize * of_answer
}
