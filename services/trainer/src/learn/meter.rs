//! Measures each step for its line in the log, so that the training loop need not.

use togi_runtime::process::memory;
use togi_tokens::Row;

use crate::gauge;
use crate::learn::snapshot::Progress;
use crate::learn::step::Step;

/// Weight of the newest step in the moving average of step times.
const NEWEST: f64 = 0.1;

/// The results of a step's computation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepResult {
    /// Mean loss over the window's learned targets.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Steps skipped so far in the run.
    pub skipped: u64,
    /// Peak GPU memory of the run so far, in bytes.
    pub device_memory: Option<u64>,
    /// The GPU's readings.
    pub gpu: gauge::Readings,
}

/// A finished step.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Its line in the log.
    pub line: Step,
    /// Its duration in seconds.
    pub seconds: f64,
    /// The number of its records.
    pub samples: u64,
    /// The number of its tokens.
    pub tokens: u64,
}

/// Measures steps and returns their lines.
#[derive(Debug)]
pub(crate) struct Meter {
    steps: u64,
    rows: u64,
    mean_seconds: Option<f64>,
}

impl Meter {
    /// Returns a meter for a run of `steps` steps, with `rows` rows per epoch.
    #[must_use]
    pub(crate) fn new(steps: u64, rows: u64) -> Meter {
        Meter {
            steps,
            rows,
            mean_seconds: None,
        }
    }

    /// Returns the line of the step that ended at `progress`, trained on `window` and took
    /// `seconds`.
    pub(crate) fn step(
        &mut self,
        progress: &Progress,
        result: StepResult,
        window: &[Row],
        seconds: f64,
    ) -> Measured {
        let seconds = seconds.max(1e-9);
        let mean = self
            .mean_seconds
            .map_or(seconds, |mean| mean + NEWEST * (seconds - mean));
        self.mean_seconds = Some(mean);
        let tokens = window.iter().map(|row| row.input_ids.len() as u64).sum();
        let samples = window.len() as u64;
        let line = Step {
            step: progress.step,
            steps: self.steps,
            loss: result.loss,
            gradient_norm: result.gradient_norm,
            learning_rate: result.learning_rate,
            epoch: progress.epoch as f64 + progress.offset as f64 / self.rows.max(1) as f64,
            tokens_per_second: tokens as f64 / seconds,
            samples_per_second: samples as f64 / seconds,
            memory_bytes: memory::resident_bytes(),
            seconds_left: self.steps.saturating_sub(progress.step) as f64 * mean,
            tokens: progress.tokens,
            device_memory_bytes: result.device_memory,
            gpu_utilization_percent: result.gpu.utilization_percent,
            gpu_power_watts: result.gpu.power_watts,
            gpu_memory_bytes: result.gpu.memory_bytes,
            skipped_steps: result.skipped,
            records: samples,
        };
        Measured {
            line,
            seconds,
            samples,
            tokens,
        }
    }
}
