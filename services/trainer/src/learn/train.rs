//! The training loop. It runs on its own thread and knows nothing of storage, leases or events.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use togi_model::{Batch, Config, Dropout, Engine, Lora, Training, World, optim};
use togi_tokens::Row;
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::gauge::Gauge;
use crate::learn::meter::{Measured, Meter, StepResult};
use crate::learn::snapshot::{Progress, Snapshot};
use crate::recipe::Recipe;

/// The mutable state of a run, between two steps.
#[derive(Debug)]
pub(crate) struct State {
    /// The position in the run.
    pub progress: Progress,
    /// The trainable tensors.
    pub lora: Lora,
    /// The optimizer and its moments.
    pub optimizer: optim::AdamW,
}

/// The constants of a run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The hyperparameters.
    pub recipe: Recipe,
    /// Rows per epoch.
    pub rows: u64,
    /// Total optimizer steps.
    pub steps: u64,
}

/// The hardware that a run uses.
#[derive(Clone, Copy)]
pub(crate) struct Machine<'a> {
    /// The base on its device.
    pub engine: &'a Engine,
    /// The GPU's readings.
    pub gauge: &'a Gauge,
}

/// A message from the loop. Messages arrive in order.
#[derive(Debug)]
pub(crate) enum Update {
    /// A finished step.
    Step(Measured),
    /// The state after the last step, to be stored.
    Checkpoint(Box<Snapshot>),
}

/// A request to the loop, which checks it before each step.
#[derive(Debug, Default)]
pub(crate) struct Request(AtomicU8);

const STOP: u8 = 1;
const ABORT: u8 = 2;

impl Request {
    /// Asks for a checkpoint, then the end.
    pub(crate) fn stop(&self) {
        self.0.fetch_max(STOP, Ordering::Relaxed);
    }

    /// Asks for the end without a checkpoint.
    pub(crate) fn abort(&self) {
        self.0.fetch_max(ABORT, Ordering::Relaxed);
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Trains until the last step or a request to end, and returns whether all steps are done. If the
/// run finishes or is stopped, its final state is sent as a checkpoint unless it was already sent.
/// `rows` starts at the state's position; the run ends when it is exhausted.
///
/// # Errors
/// [`Error::NotFinite`]; the errors of the rows and of the engine.
pub(crate) fn train(
    state: &mut State,
    plan: &Plan,
    machine: &Machine<'_>,
    rows: &mut impl Iterator<Item = Result<Row>>,
    request: &Request,
    updates: &mpsc::Sender<Update>,
) -> Result<bool> {
    let recipe = &plan.recipe;
    let engine = machine.engine;
    engine.forget_peak()?;
    let mut training = Training::new(engine, &state.lora, &state.optimizer, World::ALONE)?;
    let schedule = optim::Schedule {
        base: recipe.learning_rate,
        warmup: recipe.warmup_steps,
        total: plan.steps,
    };
    let mut meter = Meter::new(plan.steps, plan.rows);
    let mut saved = state.progress.step;
    while state.progress.step < plan.steps && request.get() == 0 {
        let Some(window) = window(rows, recipe.window().min(plan.rows - state.progress.offset))?
        else {
            break;
        };
        let began = Instant::now();
        let step = state.progress.step + 1;
        let rate = schedule.lr(state.progress.step);
        let dropout = Dropout {
            p: recipe.lora.dropout,
            seed: recipe.seed,
            step,
        };
        for batch in batches(engine, &window, recipe.batch_size) {
            training.accumulate(&batch, Some(&dropout))?;
        }
        let (loss, norm) = training.step(rate, recipe.max_gradient_norm)?;
        finite("the loss", loss.sum, step, state, &window)?;
        finite("the gradient norm", norm, step, state, &window)?;
        let seconds = began.elapsed().as_secs_f64();
        advance(&mut state.progress, plan, &window, seconds);
        let result = StepResult {
            loss: loss.mean(),
            gradient_norm: norm,
            learning_rate: rate,
            skipped: training.skipped(),
            device_memory: engine.device_memory().map(|(most, _)| most),
            gpu: machine.gauge.readings(),
        };
        let done = meter.step(&state.progress, result, &window, seconds);
        if updates.blocking_send(Update::Step(done)).is_err() {
            return Ok(false);
        }
        if recipe.checkpoint_every > 0
            && step.is_multiple_of(recipe.checkpoint_every)
            && step < plan.steps
        {
            saved = step;
            state.read(&training)?;
            if updates
                .blocking_send(Update::Checkpoint(Box::new(state.snapshot())))
                .is_err()
            {
                return Ok(false);
            }
        }
    }
    state.read(&training)?;
    let done = state.progress.step == plan.steps;
    if request.get() < ABORT && state.progress.step > saved {
        // The receiver is gone if another worker has taken over the job.
        let _ = updates.blocking_send(Update::Checkpoint(Box::new(state.snapshot())));
    }
    Ok(done)
}

impl State {
    /// Returns the state before the first step.
    ///
    /// # Errors
    /// A LoRA setting of the recipe is out of range for the base.
    pub(crate) fn fresh(config: &Config, recipe: &Recipe) -> Result<State> {
        let lora = Lora::init(config, &recipe.lora, recipe.seed)?;
        Ok(State {
            progress: Progress::default(),
            optimizer: optim::AdamW::new(lora.len(), recipe.optimizer()),
            lora,
        })
    }

    /// Copies the weights and the optimizer's moments from the device.
    fn read(&mut self, training: &Training<'_>) -> Result<()> {
        self.lora = training.lora()?;
        self.optimizer = training.optimizer()?;
        Ok(())
    }

    /// Returns a copy of everything that another worker needs to resume.
    #[must_use]
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            progress: self.progress.clone(),
            lora: self.lora.to_bytes().into(),
            optimizer: self.optimizer.to_bytes().into(),
        }
    }
}

/// Takes a window's records; `None` if the rows end first.
fn window(rows: &mut impl Iterator<Item = Result<Row>>, records: u64) -> Result<Option<Vec<Row>>> {
    let mut window = Vec::new();
    while (window.len() as u64) < records {
        match rows.next().transpose()? {
            Some(row) => window.push(row),
            None => return Ok(None),
        }
    }
    Ok(Some(window))
}

/// Packs a window into the engine's passes. A record's slot is its index in the window, so that
/// dropout does not depend on the packing.
fn batches(engine: &Engine, window: &[Row], batch_size: u32) -> impl Iterator<Item = Batch> {
    let lengths: Vec<usize> = window.iter().map(|row| row.input_ids.len()).collect();
    let passes = engine.passes(&lengths, batch_size as usize).into_iter();
    passes.map(|records| {
        let mut batch = Batch::new();
        for slot in records {
            let row = &window[slot];
            batch.push(&row.input_ids, &row.labels, slot as u32);
        }
        batch
    })
}

fn advance(progress: &mut Progress, plan: &Plan, window: &[Row], seconds: f64) {
    progress.step += 1;
    progress.offset += window.len() as u64;
    progress.samples += window.len() as u64;
    progress.tokens += window
        .iter()
        .map(|row| row.input_ids.len() as u64)
        .sum::<u64>();
    progress.seconds += seconds;
    if progress.offset == plan.rows {
        progress.epoch += 1;
        progress.offset = 0;
    }
}

fn finite(what: &'static str, value: f64, step: u64, state: &State, window: &[Row]) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    let samples = window.iter().map(|row| row.sample_id.clone()).collect();
    Err(Error::NotFinite {
        what,
        step,
        epoch: state.progress.epoch,
        samples,
        checkpoint: None,
    })
}
