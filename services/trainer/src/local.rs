//! A run without services: the same loop over the same order of rows that are at hand, to the same
//! adapter. It keeps no checkpoint and publishes nothing.

use std::mem;
use std::sync::Arc;

use serde_json::Value;
use togi_model::memory::{trainable, weights};
use togi_model::{Base, Device, DeviceName, Engine, Lora, LoraConfig};
use togi_runtime::DatasetId;
use togi_runtime::process::memory;
use togi_runtime::registry::adapter_manifest::Identity;
use togi_tokens::{Row, Split, prompt};

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::fit::{Lengths, MemoryPlan, Need};
use crate::gauge::Gauge;
use crate::learn::data::Order;
use crate::learn::losses;
use crate::learn::step::Step;
use crate::learn::thread::TrainingThread;
use crate::learn::train::{Plan, State, Update};
use crate::papers::report::{self, RunSummary};
use crate::recipe::Recipe;

/// What a run is made of.
pub struct Run {
    /// The base, held as the recipe says.
    pub base: Arc<Base>,
    /// Where it computes.
    pub device: DeviceName,
    /// The name under which PEFT shall load the base.
    pub base_name: String,
    /// Where the base's files are from: a URL.
    pub base_origin: String,
    /// Digest of the tokenizer's file.
    pub tokenizer_digest: String,
    /// The data set that the rows are.
    pub dataset: DatasetId,
    /// The rows in their stored order, at least one.
    pub rows: Vec<Row>,
    /// The numbers.
    pub recipe: Recipe,
    /// The values to start from; fresh ones if not set.
    pub init: Option<Lora>,
}

/// What a run has made.
#[derive(Debug)]
pub struct Trained {
    /// The adapter's folder.
    pub adapter: Adapter,
    /// What a job's `report.json` says; without a job's name.
    pub report: Value,
    /// What a job's `trainer_state.json` says.
    pub trainer_state: Value,
    /// Why a service would not promote it: its loss rose beyond the recipe's `max_loss_rise`.
    pub divergence: Option<String>,
}

impl Run {
    /// Trains to the last step and gives each step's line to `seen` as it comes. Takes as long as
    /// it takes: not for async code.
    ///
    /// # Errors
    /// Parts that do not fit each other, by name; [`Error::NotFinite`]; whatever `seen` says, which
    /// ends the run.
    pub fn train(mut self, mut seen: impl FnMut(Step) -> Result<()>) -> Result<Trained> {
        let state = self.start()?;
        let (plan, order) = (self.plan(), self.order());
        let device = self.device.device(self.base.precision());
        // Held so that the driver keeps the GPU ready.
        let gpu = self.device.open()?;
        let engine = Arc::new(Engine::on(Arc::clone(&self.base), device)?);
        let gauge = Gauge::of(gpu.as_ref());
        let stored = mem::take(&mut self.rows);
        let rows = order.places().map(move |place| {
            let row = usize::try_from(place)
                .ok()
                .and_then(|place| stored.get(place));
            row.cloned()
                .ok_or_else(|| Error::damaged("the order", "it names a row that is not there"))
        });
        let mut thread = TrainingThread::start(engine, gauge, state, plan, rows)?;
        let mut lines = Vec::new();
        let watched = watch(&mut thread, &mut lines, &mut seen);
        if watched.is_err() {
            thread.abort();
        }
        let joined = thread.blocking_join();
        watched?;
        let (state, trained) = joined?;
        if !trained? {
            return Err(Error::StoppedEarly);
        }
        self.finish(&state, &lines, order.rows)
    }

    /// Plans the run's memory.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has not so much; the device's.
    pub fn memory(&self) -> Result<MemoryPlan> {
        let config = self.base.config();
        let precision = self.base.precision();
        let available = match self.device.open()? {
            Some(gpu) => Some(gpu.memory()?.available),
            // The base is there already.
            None => memory::available_bytes()
                .map(|bytes| bytes.saturating_add(weights(config, precision, Device::Cpu))),
        };
        let length = |row: &Row| u32::try_from(row.input_ids.len()).unwrap_or(u32::MAX);
        let need = Need {
            config: config.clone(),
            recipe: self.recipe.clone(),
            device: self.device,
            lengths: Lengths::Each(self.rows.iter().map(length).collect()),
        };
        need.check(available)
    }

    /// Checks the parts against each other, and returns the state before the first step.
    fn start(&self) -> Result<State> {
        let config = self.base.config();
        self.recipe.check_base(config)?;
        let longest = self.rows.iter().map(|row| row.input_ids.len()).max();
        let most = config.max_position_embeddings;
        if longest.is_some_and(|longest| longest > most) {
            let reason = format!("lets rows be longer than the {most} ids that the base takes");
            return Err(Error::unfit("max_length", reason));
        }
        let mut state = State::fresh(config, &self.recipe)?;
        if let Some(init) = &self.init {
            check_init(init, &state.lora)?;
            state.lora.values_mut().copy_from_slice(init.values());
        }
        Ok(state)
    }

    fn plan(&self) -> Plan {
        let rows = self.rows.len() as u64;
        Plan {
            recipe: Recipe {
                // A local run cannot resume.
                checkpoint_every: 0,
                ..self.recipe.clone()
            },
            rows,
            steps: self.recipe.steps(rows),
        }
    }

    fn order(&self) -> Order {
        Order {
            dataset: self.dataset.into(),
            split: Split::Train,
            rows: self.rows.len() as u64,
            seed: self.recipe.seed,
            shuffle: self.recipe.shuffle,
            epochs: u64::from(self.recipe.epochs),
        }
    }

    fn finish(&self, state: &State, lines: &[Step], rows: u64) -> Result<Trained> {
        let identity = Identity {
            base: self.base.digest().to_owned(),
            base_precision: self.recipe.precision.name().to_owned(),
            tokenizer: self.tokenizer_digest.clone(),
            template: prompt::template_digest().to_owned(),
            dataset: self.dataset,
            recipe: self.recipe.digest(),
        };
        let adapter = Adapter::new(&state.lora, &self.base_name, &identity, &self.recipe)?;
        let config = self.base.config();
        let facts = RunSummary {
            job: String::new(),
            generation: adapter.generation,
            base_origin: self.base_origin.clone(),
            rows,
            samples: state.progress.samples,
            seconds: state.progress.seconds,
            failed_attempts: 0,
            worker: String::new(),
            device: self.device.to_string(),
            peak_memory_bytes: memory::peak_bytes(),
            adapter_bytes: adapter.tensors_bytes(),
            trainable_parameters: trainable(config, &self.recipe.lora),
            base_parameters: config.parameters(),
        };
        Ok(Trained {
            report: report::report(&facts, &self.recipe, lines),
            trainer_state: report::trainer_state(&self.recipe, lines),
            divergence: losses::divergence(lines, self.recipe.max_loss_rise),
            adapter,
        })
    }
}

/// Takes lines until the loop ends.
fn watch(
    thread: &mut TrainingThread,
    lines: &mut Vec<Step>,
    seen: &mut impl FnMut(Step) -> Result<()>,
) -> Result<()> {
    while let Some(update) = thread.blocking_update() {
        if let Update::Step(done) = update {
            lines.push(done.line);
            seen(done.line)?;
        }
    }
    Ok(())
}

/// The values to start from must lie where the recipe's do, and mean the same.
fn check_init(init: &Lora, fresh: &Lora) -> Result<()> {
    let (theirs, ours) = (init.config(), fresh.config());
    let targets = |lora: &LoraConfig| {
        let mut names: Vec<&str> = lora.targets.iter().map(|target| target.name()).collect();
        names.sort_unstable();
        names.join(", ")
    };
    let parts = [
        ("rank", theirs.rank.to_string(), ours.rank.to_string()),
        ("alpha", theirs.alpha.to_string(), ours.alpha.to_string()),
        ("target_modules", targets(theirs), targets(ours)),
    ];
    for (what, theirs, ours) in parts {
        if theirs != ours {
            let reason = format!("has {what} {theirs}, the recipe has {ours}");
            return Err(Error::unfit("init_adapter", reason));
        }
    }
    if init.modules() != fresh.modules() {
        let reason = "has other layers, or a rank_pattern or alpha_pattern, which a recipe has not";
        return Err(Error::unfit("init_adapter", reason));
    }
    Ok(())
}
