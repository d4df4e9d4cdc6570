//! The thread that owns the device: it receives work, plans a round, runs it and sends the events.
//! A client that has gone away is noticed before the next round.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use togi_model::Engine;
use togi_model::decode::Decoder;
use togi_tokens::Tokenizer;

use crate::base::Loaded;
use crate::config::EngineConfig;
use crate::engine::door::{Door, Work};
use crate::engine::event::Finished;
use crate::engine::load::Load;
use crate::engine::scheduler::{self, Limits, Round, State};
use crate::engine::sequence::{Job, Sequence};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::semconv;

/// The engine's thread: [`EngineThread::run`] is its work.
pub(crate) struct EngineThread {
    engine: Arc<Engine>,
    tokenizer: Arc<Tokenizer>,
    eos: Vec<u32>,
    limits: Limits,
    work: Receiver<Work>,
    load: Arc<Load>,
    /// Set when the grace time is over: every answer ends before the next round.
    pub(crate) abort: Arc<AtomicBool>,
    metrics: Metrics,
}

/// The requests inside.
#[derive(Default)]
struct Requests {
    /// In order of arrival.
    waiting: VecDeque<Job>,
    active: Vec<Sequence>,
}

impl EngineThread {
    /// Makes the work of a thread over a base, and the door to it.
    pub(crate) fn new(loaded: &Loaded, config: &EngineConfig, metrics: Metrics) -> (Door, Self) {
        let (sender, work) = channel();
        let door = Door::new(sender, config.max_active, config.max_waiting);
        let thread = Self {
            engine: loaded.engine.clone(),
            tokenizer: loaded.tokenizer.clone(),
            eos: loaded.eos.clone(),
            limits: Limits {
                max_active: config.max_active,
                prefill_chunk: config.prefill_chunk,
            },
            work,
            load: door.load().clone(),
            abort: Arc::default(),
            metrics,
        };
        (door, thread)
    }

    /// Works until the door is closed and every request inside has ended.
    pub(crate) fn run(self) {
        let decoder = Decoder::new(&self.engine, self.eos.iter().copied());
        let mut requests = Requests::default();
        while self.receive(&mut requests) {
            self.end_early(&mut requests);
            let round = scheduler::plan(&requests.state(), &self.limits);
            self.admit(&decoder, &round, &mut requests);
            self.load.set_active(requests.active.len());
            self.advance(&decoder, &round, &mut requests.active);
            self.load.set_active(requests.active.len());
        }
    }

    /// Takes the work that has arrived, and blocks while no request is inside. Returns false when
    /// the door is closed and no request is inside.
    fn receive(&self, requests: &mut Requests) -> bool {
        if requests.is_empty() {
            match self.work.recv() {
                Ok(work) => requests.take(work),
                Err(_) => return false,
            }
        }
        loop {
            match self.work.try_recv() {
                Ok(work) => requests.take(work),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !requests.is_empty(),
            }
        }
    }

    /// Ends the requests whose client has gone away, and after the grace time all of them.
    fn end_early(&self, requests: &mut Requests) {
        requests.waiting.retain(|job| !job.is_abandoned());
        self.end_where(&mut requests.active, |sequence| {
            sequence.is_abandoned().then_some(Err(End::Abandoned))
        });
        if self.abort.load(Ordering::Relaxed) {
            for job in requests.waiting.drain(..) {
                self.metrics.failed(&Error::Stopping);
                job.fail(Error::Stopping);
            }
            let stopping = |_: &mut Sequence| Some(Err(End::Failed(Error::Stopping)));
            self.end_where(&mut requests.active, stopping);
        }
    }

    /// Makes the round's admissions active.
    fn admit(&self, decoder: &Decoder<'_>, round: &Round, requests: &mut Requests) {
        for ticket in &round.admit {
            let is_admitted = |job: &Job| job.ticket() == *ticket;
            let position = requests.waiting.iter().position(is_admitted);
            let Some(job) = position.and_then(|position| requests.waiting.remove(position)) else {
                continue;
            };
            let events = job.events.clone();
            match Sequence::new(job, decoder, &self.tokenizer) {
                Ok(sequence) => requests.active.push(sequence),
                Err(error) => {
                    self.metrics.failed(&error);
                    // The client may have gone away.
                    let _ = events.try_send(Err(error));
                }
            }
        }
    }

    /// Runs the round's pass and lets each sequence that took part in it advance.
    fn advance(&self, decoder: &Decoder<'_>, round: &Round, active: &mut Vec<Sequence>) {
        let mut shares = Vec::with_capacity(active.len());
        for sequence in active.iter_mut() {
            if let Some(tokens) = round.tokens(sequence.ticket()) {
                shares.push(sequence.share(tokens));
            }
        }
        let mut choices = decoder.run(&mut shares).into_iter();
        self.end_where(active, |sequence| {
            round.tokens(sequence.ticket())?;
            let choice = match choices.next()? {
                Ok(choice) => choice,
                Err(error) => return Some(Err(End::Failed(Error::Network(error)))),
            };
            sequence.show_prompt();
            sequence.advance(choice?).map(Ok)
        });
    }

    /// Takes out the sequences that have ended; the others keep their order.
    fn end_where(
        &self,
        active: &mut Vec<Sequence>,
        mut ended: impl FnMut(&mut Sequence) -> Option<Ended>,
    ) {
        for mut sequence in std::mem::take(active) {
            match ended(&mut sequence) {
                None => active.push(sequence),
                Some(ended) => self.end(sequence, ended),
            }
        }
    }

    fn end(&self, sequence: Sequence, ended: Ended) {
        match ended {
            Ok(finished) => {
                self.metrics.finished(&finished);
                record(sequence.span(), &finished);
                sequence.end(Ok(finished));
            }
            Err(End::Abandoned) => self.metrics.abandoned(),
            Err(End::Failed(error)) => {
                self.metrics.failed(&error);
                sequence.end(Err(error));
            }
        }
    }
}

impl Requests {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// Queues a job; runs a probe at once, between two rounds.
    fn take(&mut self, work: Work) {
        match work {
            Work::Answer(job) => self.waiting.push_back(*job),
            Work::Probe(probe) => probe.run(),
        }
    }

    /// Returns the facts that a round is planned from.
    fn state(&self) -> State {
        State {
            waiting: self.waiting.iter().map(Job::entry).collect(),
            active: self.active.iter().map(Sequence::entry).collect(),
        }
    }
}

type Ended = std::result::Result<Finished, End>;

/// The end of an answer that does not finish.
enum End {
    Abandoned,
    Failed(Error),
}

fn record(span: &tracing::Span, finished: &Finished) {
    span.record(semconv::GEN_AI_USAGE_INPUT_TOKENS, finished.prompt_tokens);
    span.record(
        semconv::GEN_AI_USAGE_OUTPUT_TOKENS,
        finished.completion_tokens,
    );
    span.record(
        semconv::GEN_AI_RESPONSE_FINISH_REASONS,
        finished.reason.name(),
    );
}
