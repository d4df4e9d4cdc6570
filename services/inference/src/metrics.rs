//! The counters and histograms of a replica. Their names are those of OpenTelemetry's conventions
//! for generative AI where these have one.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram};

use crate::error::Error;
use crate::event::Finished;
use crate::semconv;

/// Bounds in seconds for a token.
const TOKEN_BOUNDS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Bounds in seconds for a request or a load.
const REQUEST_BOUNDS: [f64; 13] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Bounds in sequences.
const BATCH_BOUNDS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// The time that a token took.
pub(crate) enum Tick {
    /// Since the request's arrival.
    First(Duration),
    /// Since the last token.
    Next(Duration),
}

/// Where an adapter is brought to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TierName {
    /// The device, from main memory.
    Device,
    /// Main memory, from the store.
    Host,
}

impl TierName {
    /// Returns the name as a label.
    pub(crate) fn label(self) -> KeyValue {
        let name = match self {
            Self::Device => "device",
            Self::Host => "host",
        };
        KeyValue::new(semconv::TIER, name)
    }
}

/// The instruments; cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    to_first_token: Histogram<f64>,
    per_token: Histogram<f64>,
    between_tokens: Histogram<f64>,
    in_queue: Histogram<f64>,
    batch_size: Histogram<u64>,
    prefix_hits: Counter<u64>,
    prefix_tokens: Counter<u64>,
    duration: Histogram<f64>,
    tokens: Counter<u64>,
    answers: Counter<u64>,
    load_duration: Histogram<f64>,
    loads: Counter<u64>,
    brought_up: Histogram<f64>,
    evicted: Counter<u64>,
    waited_for_adapter: Histogram<f64>,
    found_no_room: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let meter = togi_runtime::telemetry::meter();
        let seconds = |name: &'static str, what: &'static str, bounds: &[f64]| {
            meter
                .f64_histogram(name)
                .with_unit("s")
                .with_description(what)
                .with_boundaries(bounds.to_vec())
                .build()
        };
        let count = |name: &'static str, what: &'static str| {
            meter.u64_counter(name).with_description(what).build()
        };
        let loads = count(
            "togi.inference.adapter.loads",
            "Loads of adapters, by outcome",
        );
        // A counter that begins at 1 has not risen: without a 0 the first failure would go
        // unnoticed.
        for outcome in ["rejected", "deferred"] {
            loads.add(0, &[KeyValue::new(semconv::OUTCOME, outcome)]);
        }
        let evicted = count(
            "togi.inference.pool.evictions",
            "Adapters that left the device or main memory for another one",
        );
        for tier in [TierName::Device, TierName::Host] {
            evicted.add(0, &[tier.label()]);
        }
        let found_no_room = count(
            "togi.inference.pool.refusals",
            "Requests refused because the adapters in use leave no room on the device",
        );
        found_no_room.add(0, &[]);
        let prefix_hits = count(
            "togi.inference.prefix.hits",
            "Prompts whose beginning was read before",
        );
        prefix_hits.add(0, &[]);
        let prefix_tokens = count(
            "togi.inference.prefix.tokens",
            "Tokens of prompts that were not read, because they were read before",
        );
        prefix_tokens.add(0, &[]);
        Self {
            prefix_hits,
            prefix_tokens,
            to_first_token: seconds(
                "gen_ai.server.time_to_first_token",
                "From a request's arrival to the answer's first token",
                &REQUEST_BOUNDS,
            ),
            per_token: seconds(
                "gen_ai.server.time_per_output_token",
                "Time for each token after the first; its inverse is tokens per second",
                &TOKEN_BOUNDS,
            ),
            between_tokens: seconds(
                "togi.inference.time_between_tokens",
                "From a token of an answer to its next",
                &TOKEN_BOUNDS,
            ),
            in_queue: seconds(
                "togi.inference.time_in_queue",
                "From a request's arrival to the round in which it begins",
                &REQUEST_BOUNDS,
            ),
            batch_size: meter
                .u64_histogram("togi.inference.batch.size")
                .with_unit("{sequence}")
                .with_description("Sequences that share a round")
                .with_boundaries(BATCH_BOUNDS.to_vec())
                .build(),
            duration: seconds(
                "gen_ai.server.request.duration",
                "From a request's arrival to its answer's end",
                &REQUEST_BOUNDS,
            ),
            tokens: count("togi.inference.tokens", "Tokens of prompts and answers"),
            answers: count("togi.inference.answers", "Answers that ended, by reason"),
            load_duration: seconds(
                "togi.inference.adapter.load.duration",
                "From hearing of a promotion to serving it",
                &REQUEST_BOUNDS,
            ),
            loads,
            brought_up: seconds(
                "togi.inference.pool.load.duration",
                "Bringing an adapter from the store to main memory, or from there onto the device",
                &TOKEN_BOUNDS,
            ),
            evicted,
            waited_for_adapter: seconds(
                "togi.inference.time_for_adapter",
                "Waiting of a request for its adapter to be on the device",
                &TOKEN_BOUNDS,
            ),
            found_no_room,
        }
    }

    /// Counts a request that begins after this time in the queue.
    pub(crate) fn begun(&self, in_queue: Duration) {
        self.in_queue.record(in_queue.as_secs_f64(), &[]);
    }

    /// Counts the tokens of a prompt that were read before.
    pub(crate) fn found(&self, tokens: usize) {
        if tokens > 0 {
            self.prefix_hits.add(1, &[]);
            self.prefix_tokens.add(tokens as u64, &[]);
        }
    }

    /// Counts a token of an answer.
    pub(crate) fn token(&self, tick: &Tick) {
        match tick {
            Tick::First(time) => self.to_first_token.record(time.as_secs_f64(), &[]),
            Tick::Next(time) => self.between_tokens.record(time.as_secs_f64(), &[]),
        }
    }

    /// Counts a round of this many sequences.
    pub(crate) fn round(&self, sequences: usize) {
        self.batch_size.record(sequences as u64, &[]);
    }

    /// Counts an answer that was written to its end.
    pub(crate) fn finished(&self, finished: &Finished) {
        self.answers.add(
            1,
            &[KeyValue::new(
                semconv::FINISH_REASON,
                finished.reason.name(),
            )],
        );
        let total = finished.total.as_secs_f64();
        let first = finished.to_first_token.as_secs_f64();
        self.duration.record(total, &[]);
        if finished.completion_tokens > 1 {
            let rest = (finished.completion_tokens - 1) as f64;
            self.per_token.record((total - first) / rest, &[]);
        }
        let token_type = |name| [KeyValue::new(semconv::GEN_AI_TOKEN_TYPE, name)];
        self.tokens
            .add(finished.prompt_tokens as u64, &token_type("input"));
        self.tokens
            .add(finished.completion_tokens as u64, &token_type("output"));
    }

    /// Counts answers whose client went away, while they waited or were written.
    pub(crate) fn abandoned(&self, answers: usize) {
        self.answers.add(
            answers as u64,
            &[KeyValue::new(semconv::FINISH_REASON, "abandoned")],
        );
    }

    /// Counts an answer that failed.
    pub(crate) fn failed(&self, error: &Error) {
        self.answers.add(
            1,
            &[
                KeyValue::new(semconv::FINISH_REASON, "error"),
                KeyValue::new(semconv::ERROR_TYPE, error.class().name()),
            ],
        );
    }

    /// Counts an adapter that was brought to a tier.
    pub(crate) fn brought_up(&self, tier: TierName, time: Duration) {
        self.brought_up.record(time.as_secs_f64(), &[tier.label()]);
    }

    /// Counts adapters that left a tier for another one.
    pub(crate) fn evicted(&self, tier: TierName, count: usize) {
        self.evicted.add(count as u64, &[tier.label()]);
    }

    /// Counts a request that waited for its adapter.
    pub(crate) fn waited_for_adapter(&self, time: Duration) {
        self.waited_for_adapter.record(time.as_secs_f64(), &[]);
    }

    /// Counts a request whose adapter found no room on the device.
    pub(crate) fn found_no_room(&self) {
        self.found_no_room.add(1, &[]);
    }

    /// Counts a load by its outcome: `loaded`, `rejected`, `deferred`, or `overtaken` by the next
    /// revision of its alias.
    pub(crate) fn load_ended(&self, outcome: &'static str, seconds: f64) {
        let outcome = [KeyValue::new(semconv::OUTCOME, outcome)];
        self.loads.add(1, &outcome);
        self.load_duration.record(seconds, &outcome);
    }
}
