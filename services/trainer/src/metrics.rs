//! The trainer's metrics.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, UpDownCounter};
use togi_runtime::telemetry;

use crate::learn::meter::Measured;

/// The trainer's instruments. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    running: UpDownCounter<i64>,
    waiting: Gauge<u64>,
    step_seconds: Histogram<f64>,
    loss: Gauge<f64>,
    gradient_norm: Gauge<f64>,
    tokens_per_second: Gauge<f64>,
    gpu: [Gauge<f64>; 4],
    tokens: Counter<u64>,
    samples: Counter<u64>,
    policy_jobs: Counter<u64>,
    evaluations: Counter<u64>,
}

const PASSED: &str = "passed";
const REFUSED: &str = "refused";

/// Counts a job as running until dropped.
#[derive(Debug)]
pub(crate) struct Running(UpDownCounter<i64>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.add(-1, &[]);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// Creates the instruments on the process's meter.
    #[must_use]
    pub(crate) fn new() -> Metrics {
        let meter = telemetry::meter();
        let evaluations = meter
            .u64_counter("togi.trainer.evaluations")
            .with_description("Adapters that passed their gate, or were refused")
            .build();
        // Each series starts at zero; otherwise the first refusal would not show as an increase.
        for outcome in [PASSED, REFUSED] {
            evaluations.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        Metrics {
            running: meter
                .i64_up_down_counter("togi.trainer.jobs.running")
                .with_description("Jobs that this process works on")
                .build(),
            waiting: meter
                .u64_gauge("togi.trainer.jobs.waiting")
                .with_description("Training jobs that wait for a worker, anywhere")
                .build(),
            step_seconds: meter
                .f64_histogram("togi.trainer.step.duration")
                .with_unit("s")
                .with_description("Duration of an optimizer step")
                .build(),
            loss: meter
                .f64_gauge("togi.trainer.loss")
                .with_description("Mean loss of the last step's learned targets")
                .build(),
            gradient_norm: meter
                .f64_gauge("togi.trainer.gradient.norm")
                .with_description("Gradient norm of the last step, before clipping")
                .build(),
            tokens_per_second: meter
                .f64_gauge("togi.trainer.throughput")
                .with_unit("{token}/s")
                .with_description("Tokens a second of the last step")
                .build(),
            gpu: [
                (
                    "utilization",
                    "%",
                    "Share of the time in which the GPU was busy recently",
                ),
                ("power", "W", "Power that the GPU draws"),
                ("memory", "By", "Memory of the GPU in use by all processes"),
                (
                    "memory.peak",
                    "By",
                    "Most memory that the trainer took of the GPU in this run",
                ),
            ]
            .map(|(name, unit, description)| {
                meter
                    .f64_gauge(format!("togi.trainer.gpu.{name}"))
                    .with_unit(unit)
                    .with_description(description)
                    .build()
            }),
            tokens: meter
                .u64_counter("togi.trainer.tokens")
                .with_unit("{token}")
                .with_description("Tokens trained on")
                .build(),
            samples: meter
                .u64_counter("togi.trainer.samples")
                .with_unit("{record}")
                .with_description("Records trained on")
                .build(),
            policy_jobs: meter
                .u64_counter("togi.trainer.policy.jobs")
                .with_description("Jobs that policies have started, or failed to start")
                .build(),
            evaluations,
        }
    }

    /// Counts a job as running until the returned value is dropped.
    #[must_use]
    pub(crate) fn running(&self) -> Running {
        self.running.add(1, &[]);
        Running(self.running.clone())
    }

    /// Records the number of waiting jobs.
    pub(crate) fn waiting(&self, jobs: u64) {
        self.waiting.record(jobs, &[]);
    }

    /// Records a step.
    pub(crate) fn step(&self, step: &Measured) {
        self.loss.record(step.line.loss, &[]);
        self.gradient_norm.record(step.line.gradient_norm, &[]);
        self.tokens_per_second
            .record(step.line.tokens_per_second, &[]);
        let line = &step.line;
        let figures = [
            line.gpu_utilization_percent,
            line.gpu_power_watts,
            line.gpu_memory_bytes.map(|bytes| bytes as f64),
            line.device_memory_bytes.map(|bytes| bytes as f64),
        ];
        // A CPU has no such readings, so it has no series, rather than one of zeros.
        for (gauge, figure) in self.gpu.iter().zip(figures) {
            if let Some(figure) = figure {
                gauge.record(figure, &[]);
            }
        }
        self.step_seconds.record(step.seconds, &[]);
        self.samples.add(step.samples, &[]);
        self.tokens.add(step.tokens, &[]);
    }

    /// Counts an evaluated adapter by its outcome.
    pub(crate) fn evaluated(&self, passed: bool) {
        let outcome = if passed { PASSED } else { REFUSED };
        self.evaluations
            .add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// Counts a policy's job by its outcome.
    pub(crate) fn policy_job(&self, outcome: &'static str) {
        self.policy_jobs
            .add(1, &[KeyValue::new("outcome", outcome)]);
    }
}
