//! The thread that owns the device. Answers that are active progress together, one turn each in every round: a token, or a chunk of
//! a prompt. Work comes by channel; what nobody waits for any more is dropped at the next turn.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use togi_model::{Engine, Step};
use togi_tokens::Tokenizer;

use crate::base::Loaded;
use crate::config::EngineConfig;
use crate::engine::door::{Door, Work};
use crate::engine::event::Finished;
use crate::engine::load::Load;
use crate::engine::sequence::{Job, Sequence};
use crate::error::{Error, Result};
use crate::metrics::Metrics;

/// The engine: [`EngineThread::run`] is the thread.
pub(crate) struct EngineThread {
    network: Arc<Engine>,
    tokenizer: Arc<Tokenizer>,
    eos: Option<u32>,
    limits: EngineConfig,
    work: Receiver<Work>,
    load: Arc<Load>,
    /// Set when the time to finish is over: every answer ends at its next turn.
    pub(crate) abort: Arc<AtomicBool>,
    metrics: Metrics,
}

impl EngineThread {
    /// Makes an engine over a base, and the door to it.
    pub(crate) fn new(loaded: &Loaded, limits: &EngineConfig, metrics: Metrics) -> (Door, Self) {
        let (sender, work) = channel();
        let door = Door::new(sender, limits.max_active, limits.max_waiting);
        let engine = Self {
            network: loaded.network.clone(),
            tokenizer: loaded.tokenizer.clone(),
            eos: loaded.eos,
            limits: limits.clone(),
            work,
            load: door.load().clone(),
            abort: Arc::default(),
            metrics,
        };
        (door, engine)
    }

    /// Works until the door is closed and everything inside has ended.
    pub(crate) fn run(self) {
        let mut waiting: VecDeque<Job> = VecDeque::new();
        let mut active: Vec<Sequence> = Vec::new();
        while self.receive(&mut waiting, active.is_empty()) || !active.is_empty() {
            waiting.retain(|job| !job.events.is_closed());
            while active.len() < self.limits.max_active {
                let Some(job) = waiting.pop_front() else {
                    break;
                };
                active.extend(self.admit(job));
            }
            self.load.set_active(active.len());
            self.round(&mut active);
            self.load.set_active(active.len());
        }
    }

    /// Makes a sequence of a job.
    fn admit(&self, job: Job) -> Option<Sequence> {
        let events = job.events.clone();
        match Sequence::new(job, &self.network, &self.tokenizer, self.eos) {
            Ok(sequence) => Some(sequence),
            Err(error) => {
                self.metrics.failed(&error);
                // Nobody may listen any more.
                let _ = events.try_send(Err(error));
                None
            }
        }
    }

    /// Takes the work that has come; with nothing else to do, waits for some. Returns whether there are jobs, or may be.
    fn receive(&self, waiting: &mut VecDeque<Job>, is_idle: bool) -> bool {
        if is_idle && waiting.is_empty() {
            match self.work.recv() {
                Ok(work) => take(work, waiting),
                Err(_) => return false,
            }
        }
        loop {
            match self.work.try_recv() {
                Ok(work) => take(work, waiting),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !waiting.is_empty(),
            }
        }
    }

    /// One turn for each: one pass of the network over all that go on.
    fn round(&self, active: &mut Vec<Sequence>) {
        self.leave_where(active, |sequence| self.early_end(sequence).map(Err));
        if active.is_empty() {
            return;
        }
        let mut logits = self.pass(active).into_iter();
        self.leave_where(active, |sequence| {
            let logits = logits.next()?;
            logits
                .and_then(|mut logits| sequence.advance(&mut logits))
                .map_err(End::Failed)
                .transpose()
        });
    }

    /// Returns each sequence's logits. A pass over all of them reads the weights once; if it fails, each goes alone, so that an
    /// error stays with the one that has it.
    fn pass(&self, active: &mut [Sequence]) -> Vec<Result<Vec<f32>>> {
        let chunk = self.limits.prefill_chunk;
        let mut steps: Vec<Step<'_>> = active
            .iter_mut()
            .map(|sequence| sequence.step(chunk))
            .collect();
        if let Ok(logits) = self.network.decode_batch(&mut steps) {
            return logits.into_iter().map(Ok).collect();
        }
        let alone = |step: Step<'_>| self.network.decode(step.cache, step.ids, step.adapter);
        steps
            .into_iter()
            .map(|step| alone(step).map_err(Error::Network))
            .collect()
    }

    fn early_end(&self, sequence: &Sequence) -> Option<End> {
        if sequence.is_abandoned() {
            return Some(End::Abandoned);
        }
        self.abort
            .load(Ordering::Relaxed)
            .then_some(End::Failed(Error::Stopping))
    }

    /// Lets go of the sequences that have ended; the others keep their order: first come, first served.
    fn leave_where(
        &self,
        active: &mut Vec<Sequence>,
        mut ended: impl FnMut(&mut Sequence) -> Option<Ended>,
    ) {
        for mut sequence in std::mem::take(active) {
            match ended(&mut sequence) {
                None => active.push(sequence),
                Some(end) => self.leave(sequence, end),
            }
        }
    }

    fn leave(&self, sequence: Sequence, ended: Ended) {
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

/// Puts an answer among those that wait; a look at logits is done on the spot.
fn take(work: Work, waiting: &mut VecDeque<Job>) {
    match work {
        Work::Answer(job) => waiting.push_back(*job),
        Work::Probe(probe) => probe.run(),
    }
}

type Ended = std::result::Result<Finished, End>;

/// How an answer ends that does not finish.
enum End {
    Abandoned,
    Failed(Error),
}

fn record(span: &tracing::Span, finished: &Finished) {
    use crate::semconv;
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
