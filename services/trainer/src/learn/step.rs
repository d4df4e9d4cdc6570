//! The measurements of an optimizer step: one line of the job's log.

/// An optimizer step. The GPU's fields are `None` on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Step {
    /// Its number, from 1.
    pub step: u64,
    /// Total steps of the run.
    pub steps: u64,
    /// Mean loss over the window's learned targets.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Position in the data, in epochs.
    pub epoch: f64,
    /// Tokens per second in this step.
    pub tokens_per_second: f64,
    /// Records per second in this step.
    pub samples_per_second: f64,
    /// Resident memory of the trainer, in bytes.
    pub memory_bytes: u64,
    /// Estimated seconds until the run ends, at the current speed.
    pub seconds_left: f64,
    /// Tokens trained on since the first step.
    pub tokens: u64,
    /// Peak GPU memory of the run so far, in bytes.
    pub device_memory_bytes: Option<u64>,
    /// The GPU's utilization, 0 to 100 percent.
    pub gpu_utilization_percent: Option<f64>,
    /// The GPU's power draw, in watts.
    pub gpu_power_watts: Option<f64>,
    /// GPU memory in use by all processes, in bytes.
    pub gpu_memory_bytes: Option<u64>,
    /// Steps so far that left the weights unchanged because a gradient overflowed fp16.
    pub skipped_steps: u64,
    /// Records of the step; 0 in lines of earlier versions.
    pub records: u64,
}
