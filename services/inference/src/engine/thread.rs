//! The thread that owns the device: it receives work, plans a round, runs it and sends the events.
//! A client that has gone away is noticed before the next round.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Instant;

use togi_model::Engine;
use togi_model::decode::{Choice, Decoder, Rounds};
use togi_model::engine::PrefixLimits;
use togi_tokens::Tokenizer;

use crate::base::Loaded;
use crate::config::EngineConfig;
use crate::engine::account::{Ledger, OUTPUT_COST};
use crate::engine::door::{Door, Room, Work};
use crate::engine::group::Group;
use crate::engine::load::{Load, Ticket};
use crate::engine::outbox::Outbox;
use crate::engine::probe::Reading;
use crate::engine::scheduler::{self, Active, Limits, Round, State};
use crate::engine::sequence::Sequence;
use crate::engine::terms::Terms;
use crate::error::{Error, Result};
use crate::event::Finished;
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
    waiting: Vec<Work>,
    answers: Rounds<Sequence>,
    probes: Vec<Reading>,
    ledger: Ledger,
    outbox: Outbox,
}

impl EngineThread {
    /// Makes the work of a thread over a base, and the door to it. The device keeps as many bytes
    /// for adapters.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is no memory for a page of keys and values.
    pub(crate) fn new(
        loaded: &Loaded,
        config: &EngineConfig,
        adapters: u64,
        metrics: Metrics,
    ) -> Result<(Door, Self)> {
        let device = loaded.device;
        let bytes = config.cache_bytes_on(device);
        let pages = loaded.engine.page_capacity(bytes, adapters);
        let pages = pages.map_err(Error::Device)?;
        if pages == 0 {
            return Err(Error::Setting {
                setting: "engine.cache_bytes".into(),
                reason: format!("the memory for keys and values on {device} holds no page of them"),
            });
        }
        let kept = match config.prefix_cache_bytes_on(device) {
            Some(0) => 0,
            Some(bytes) => {
                let capacity = loaded.engine.page_capacity(Some(bytes), adapters);
                capacity.map_err(Error::Device)?.min(pages)
            }
            None => pages,
        };
        loaded.engine.keep_prefixes(PrefixLimits { kept, pages });
        let (max_active, prompt_tokens) = (
            config.max_active_on(device).min(pages),
            config.prompt_tokens_on(device),
        );
        tracing::info!(%device, pages, kept, max_active, "room for answers");
        let (sender, work) = channel();
        let room = Room {
            max_active,
            max_waiting: config.max_waiting,
            max_waiting_tokens: config.max_waiting_tokens,
            pages,
        };
        let door = Door::new(sender, room);
        let thread = Self {
            engine: loaded.engine.clone(),
            tokenizer: loaded.tokenizer.clone(),
            eos: loaded.eos.clone(),
            limits: Limits {
                max_active,
                pages,
                prefill_chunk: config.prefill_chunk.min(prompt_tokens),
                prompt_tokens,
            },
            work,
            load: door.load().clone(),
            abort: Arc::default(),
            metrics,
        };
        Ok((door, thread))
    }

    /// Works until the door is closed and every request inside has ended.
    pub(crate) fn run(self) {
        let decoder = Decoder::new(&self.engine, self.eos.iter().copied());
        let decoder = decoder.sharing_prefixes();
        let mut requests = Requests::default();
        while self.receive(&mut requests) {
            self.end_early(&mut requests);
            let admitted = scheduler::admit(&requests.state(), &self.limits);
            let begun = self.admit(&decoder, &admitted, &mut requests);
            self.count(&requests);
            self.load.note_round(begun, requests.waiting.len());
            let reading = requests.answers.members_mut().iter_mut();
            reading.for_each(|sequence| sequence.find_prefix(&decoder));
            // Only now it is known what is left to read of the prompts.
            let round = scheduler::plan(&requests.active(), &self.limits);
            self.advance(&decoder, &round, &mut requests);
            self.count(&requests);
            requests.forget();
        }
    }

    /// Takes the work that has arrived, and blocks while no request is inside. Returns false when
    /// the door is closed and no request is inside.
    fn receive(&self, requests: &mut Requests) -> bool {
        if requests.is_empty() {
            requests.outbox.send(&self.metrics);
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

    /// Ends the requests whose client has gone away or whose time is over, and after the grace time
    /// all of them.
    fn end_early(&self, requests: &mut Requests) {
        let (now, stopping) = (Instant::now(), self.abort.load(Ordering::Relaxed));
        let early = |is_abandoned: bool| {
            if is_abandoned {
                Some(End::Abandoned)
            } else {
                stopping.then_some(End::Failed(Error::Stopping))
            }
        };
        for work in std::mem::take(&mut requests.waiting) {
            let terms = work.terms();
            let late = || {
                let waited = now - terms.arrived;
                terms
                    .is_late(now)
                    .then_some(End::Failed(Error::NotBegun(waited)))
            };
            match early(work.is_abandoned()).or_else(late) {
                None => requests.waiting.push(work),
                Some(End::Abandoned) => self.metrics.abandoned(work.places()),
                Some(End::Failed(error)) => {
                    self.metrics.failed(&error);
                    work.fail(error);
                }
            }
        }
        for reading in std::mem::take(&mut requests.probes) {
            match early(reading.probe().is_abandoned()) {
                None => requests.probes.push(reading),
                Some(End::Abandoned) => {}
                Some(End::Failed(error)) => reading.into_probe().fail(error),
            }
        }
        let ended = requests.answers.end_where(|sequence| {
            let late = sequence.terms().is_late(now);
            let early = early(sequence.is_abandoned()).map(Err);
            early.or_else(|| late.then(|| Ok(sequence.give_up())))
        });
        self.end(ended, &mut requests.outbox);
    }

    /// Lets requests begin. Returns how many answers they are.
    fn admit(&self, decoder: &Decoder<'_>, admitted: &[Ticket], requests: &mut Requests) -> usize {
        let mut begun = 0;
        for ticket in admitted {
            let is_admitted = |work: &Work| work.terms().ticket() == *ticket;
            let Some(position) = requests.waiting.iter().position(is_admitted) else {
                continue;
            };
            let work = requests.waiting.remove(position);
            let account = work.terms().account.clone();
            begun += work.places();
            self.metrics.begun(work.terms().arrived.elapsed());
            let Group { first, others } = match work {
                Work::Probe(probe) => {
                    let prompt = probe.prompt.len() as u64;
                    requests.ledger.charge(&account, prompt);
                    requests.probes.push(probe.begin());
                    continue;
                }
                Work::Answers(group) => *group,
            };
            let events = first.events.clone();
            match Sequence::new(first, others, decoder, &self.tokenizer) {
                Ok(sequence) => {
                    let unread = sequence.active().unread as u64;
                    requests.ledger.charge(&account, unread);
                    requests.answers.join(sequence);
                }
                Err(error) => {
                    self.metrics.failed(&error);
                    // The client may have gone away.
                    let _ = events.try_send(Err(error));
                }
            }
        }
        begun
    }

    /// Runs the round's pass and lets each sequence that took part in it advance. While the device
    /// computes, the events of the round before are sent.
    fn advance(&self, decoder: &Decoder<'_>, round: &Round, requests: &mut Requests) {
        let Requests {
            answers,
            probes,
            ledger,
            outbox,
            ..
        } = requests;
        let (shares, mut forks) = (round.tokens(), Vec::new());
        if !shares.is_empty() {
            self.metrics.round(shares.len());
        }
        if !self.engine.computes_aside() {
            self.tell(answers, outbox);
        }
        let running = answers.begin(decoder, |sequence| {
            let share = shares.get(&sequence.terms().ticket());
            sequence.take(share)
        });
        self.tell(answers, outbox);
        let ended = answers.finish(decoder, running, |sequence, choice| {
            let choice = match choice {
                Ok(choice) => choice,
                Err(error) => return Some(Err(End::Failed(Error::Network(error)))),
            };
            sequence.show_prompt(outbox);
            let choice = choice?;
            self.metrics.found(sequence.found_now());
            match sequence.fork(decoder, &self.tokenizer) {
                Ok(begun) => forks.extend(begun),
                Err(error) => return Some(Err(End::Failed(error))),
            }
            self.write(sequence, choice, (ledger, outbox))
        });
        self.end(ended, outbox);
        for (mut sequence, choice) in forks {
            match self.write(&mut sequence, choice, (ledger, outbox)) {
                None => answers.join(sequence),
                Some(end) => self.end(vec![(sequence, end)], outbox),
            }
        }
        for reading in std::mem::take(probes) {
            let share = shares.get(&reading.probe().terms.ticket());
            probes.extend(reading.read(share));
        }
    }

    /// Tells clients and metrics of the last round.
    fn tell(&self, answers: &mut Rounds<Sequence>, outbox: &mut Outbox) {
        for sequence in answers.members_mut() {
            sequence.show_written(outbox);
        }
        outbox.send(&self.metrics);
    }

    /// Writes the next token of an answer. Returns its end if it has ended.
    fn write(
        &self,
        sequence: &mut Sequence,
        choice: Choice,
        (ledger, outbox): (&mut Ledger, &mut Outbox),
    ) -> Option<Ended> {
        outbox.note(sequence.tick());
        ledger.charge(&sequence.terms().account, OUTPUT_COST);
        sequence.advance(choice, outbox).map(Ok)
    }

    fn end(&self, ended: Vec<(Sequence, Ended)>, outbox: &mut Outbox) {
        for (sequence, end) in ended {
            match end {
                Ok(finished) => {
                    for _ in 0..sequence.places() {
                        self.metrics.finished(&finished);
                    }
                    record(sequence.span(), &finished);
                    sequence.end(Ok(finished), outbox);
                }
                Err(End::Abandoned) => self.metrics.abandoned(sequence.places()),
                Err(End::Failed(error)) => {
                    self.metrics.failed(&error);
                    sequence.end(Err(error), outbox);
                }
            }
        }
    }

    /// Publishes how many requests are active, and their pages.
    fn count(&self, requests: &Requests) {
        let active = requests.active();
        let places = active.iter().map(|active| active.places).sum();
        let pages = active.iter().map(|active| active.pages).sum();
        self.load.set_active(places, pages);
        self.load.set_cached(self.engine.kept_pages());
    }
}

impl Requests {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.answers.members().is_empty() && self.probes.is_empty()
    }

    fn take(&mut self, work: Work) {
        let waiting = self.waiting.iter().map(|other| &other.terms().account);
        self.ledger.arrive(&work.terms().account, waiting);
        self.waiting.push(work);
    }

    /// Returns the facts that a round is planned from.
    fn state(&self) -> State {
        let waiting = self.waiting.iter().map(|work| {
            let terms = work.terms();
            let served = self.ledger.served(&terms.account);
            terms.waiting(work.prompt(), served, work.places())
        });
        State {
            waiting: waiting.collect(),
            active: self.active(),
        }
    }

    fn active(&self) -> Vec<Active> {
        let answers = self.answers.members().iter().map(Sequence::active);
        answers
            .chain(self.probes.iter().map(Reading::active))
            .collect()
    }

    /// Forgets the accounts that nothing depends on.
    fn forget(&mut self) {
        let waiting = self.waiting.iter().map(Work::terms);
        let answers = self.answers.members().iter().map(Sequence::terms);
        let probes = self.probes.iter().map(|reading| &reading.probe().terms);
        let inside = waiting.chain(answers).chain(probes);
        let inside: HashSet<_> = inside.map(|terms: &Terms| &terms.account).collect();
        self.ledger.forget(&inside);
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
