//! Measures what serving an adapter over another base precision changes: the difference of the
//! logits after the model card's sample prompts. For this, base and adapter are loaded a second
//! time, in the precision of the training, and freed afterwards.

use std::path::PathBuf;
use std::sync::Arc;

use togi_common::Generation;
use togi_model::{DeviceName, Engine, Precision};
use togi_runtime::process::memory;
use togi_runtime::registry::revisions::BaseMismatch;
use togi_tokens::Tokenizer;

use super::loader::Checked;
use super::tiers::{Found, Tiers};
use crate::engine::door::Door;
use crate::error::with_cause;
use crate::pool::ReadyAdapter;
use crate::served_adapter::ServedAdapter;

/// The mismatch of an adapter that is served over another base precision than in training.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mismatch {
    /// The base's precision in training.
    pub(crate) trained_over: String,
    /// The base's precision here.
    pub(crate) served_over: String,
    /// The effect, or the reason why it was not measured.
    pub(crate) difference: Result<Difference, String>,
}

/// Absolute differences of the logits of all ids, over all samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Difference {
    /// The largest difference.
    pub(crate) max: f64,
    /// The mean difference.
    pub(crate) mean: f64,
    /// The number of prompts.
    pub(crate) samples: usize,
}

pub(crate) struct Gauge {
    pub(crate) tiers: Arc<Tiers>,
    pub(crate) base_folder: PathBuf,
    pub(crate) device: DeviceName,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) door: Arc<Door>,
}

impl Gauge {
    /// Measures an adapter's mismatch. It is served already, so a failure is only reported.
    pub(crate) async fn measure(&self, adapter: &Arc<ServedAdapter>) -> Mismatch {
        let mismatch = Mismatch {
            trained_over: adapter.trained_over().to_owned(),
            served_over: self.tiers.loader().expected.base_precision.clone(),
            difference: self.difference(adapter).await,
        };
        let generation = adapter.generation();
        let (trained_over, served_over) = (&mismatch.trained_over, &mismatch.served_over);
        match &mismatch.difference {
            Ok(Difference { max, mean, samples }) => tracing::info!(
                %generation,
                trained_over,
                served_over,
                max,
                mean,
                samples,
                "base mismatch measured"
            ),
            Err(reason) => tracing::warn!(
                %generation,
                trained_over,
                served_over,
                reason,
                "base mismatch not measured"
            ),
        }
        mismatch
    }

    async fn difference(&self, served: &Arc<ServedAdapter>) -> Result<Difference, String> {
        let samples = self.tiers.loader().samples(served.generation()).await;
        let samples = samples.map_err(|error| with_cause(&error))?;
        if samples.is_empty() {
            return Err("the model card has no sample prompts".into());
        }
        let precision = served.trained_over();
        let precision = Precision::from_name(precision).map_err(|error| error.to_string())?;
        let trained = self.as_trained(served.generation(), precision).await?;
        let here = self.tiers.ready(Found::from(Arc::clone(served))).await;
        let here = here.map_err(|error| with_cause(&error))?;
        let mut differences = Differences::default();
        for sample in &samples {
            let prompt = self.tokenizer.encode(sample);
            let logits = async |engine: &Arc<Engine>, adapter: &Arc<ReadyAdapter>| {
                let logits = self
                    .door
                    .probe(engine.clone(), adapter.clone(), prompt.clone());
                logits.await.map_err(|error| with_cause(&error))
            };
            let ours = logits(&self.tiers.loader().engine, &here).await?;
            let (engine, adapter) = &trained;
            differences.add(&ours, &logits(engine, adapter).await?);
        }
        differences.over(samples.len())
    }

    /// Loads the base in the training's precision, and the adapter over it.
    async fn as_trained(
        &self,
        generation: Generation,
        precision: Precision,
    ) -> Result<(Arc<Engine>, Arc<ReadyAdapter>), String> {
        let engine = self.other_base(precision).await?;
        let loader = self.tiers.loader().over(engine.clone());
        let checked = loader.load(generation, BaseMismatch::Refused);
        let Checked { served, lora } = checked.await.map_err(|error| with_cause(&error))?;
        let device = engine.clone();
        let adapter = tokio::task::spawn_blocking(move || device.adapter(&lora)).await;
        let adapter = adapter
            .map_err(|error| format!("the copy of the adapter ended: {error}"))?
            .map_err(|error| with_cause(&error))?;
        Ok((engine, Arc::new(ReadyAdapter::alone(served, adapter))))
    }

    /// Loads the base in the training's precision.
    async fn other_base(&self, precision: Precision) -> Result<Arc<Engine>, String> {
        let (name, device) = (self.device, self.device.device(precision));
        // On a GPU the allocator refuses a base that does not fit.
        if name == DeviceName::Cpu {
            let needed =
                togi_model::memory::weights(self.tiers.loader().engine.config(), precision, device);
            check_room(needed, memory::available_bytes())?;
        }
        let folder = self.base_folder.clone();
        let read = move || {
            let base = name.read(&folder, precision)?;
            Engine::on(Arc::new(base), device)
        };
        let read = tokio::task::spawn_blocking(read);
        let engine = read
            .await
            .map_err(|error| format!("reading the base ended: {error}"))?
            .map_err(|error| with_cause(&error))?;
        if engine.base().digest() != self.tiers.loader().expected.made_for.base {
            return Err("the base's files have changed since it was loaded".into());
        }
        Ok(Arc::new(engine))
    }
}

/// Checks that the second base fits. If the available memory is unknown, the check passes.
fn check_room(needed: u64, available: Option<u64>) -> Result<(), String> {
    match available {
        Some(available) if available < needed => Err(format!(
            "the base as in training needs {needed} bytes of memory and {available} are available"
        )),
        _ => Ok(()),
    }
}

/// Accumulates absolute differences.
#[derive(Default)]
struct Differences {
    max: f64,
    sum: f64,
    count: usize,
}

impl Differences {
    fn add(&mut self, ours: &[f32], theirs: &[f32]) {
        for (ours, theirs) in ours.iter().zip(theirs) {
            let difference = (f64::from(*ours) - f64::from(*theirs)).abs();
            self.max = self.max.max(difference);
            self.sum += difference;
            self.count += 1;
        }
    }

    fn over(&self, samples: usize) -> Result<Difference, String> {
        let mean = self.sum / self.count as f64;
        // The maximum ignores NaN; the mean propagates it.
        if !mean.is_finite() {
            return Err("a logit is not a finite number".into());
        }
        Ok(Difference {
            max: self.max,
            mean,
            samples,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_and_the_mean_difference_are_over_all_samples() {
        let mut differences = Differences::default();
        differences.add(&[1.0, -2.0], &[1.5, -2.0]);
        differences.add(&[0.0, 4.0], &[0.0, 2.5]);
        let expected = Difference {
            max: 1.5,
            mean: 0.5,
            samples: 2,
        };
        assert_eq!(differences.over(2), Ok(expected));
        differences.add(&[f32::NAN, 0.0], &[0.0, 0.0]);
        assert!(differences.over(3).is_err());
    }

    #[test]
    fn a_base_that_does_not_fit_beside_the_other_is_not_read() {
        assert_eq!(check_room(10, Some(10)), Ok(()));
        assert_eq!(check_room(10, None), Ok(()));
        let reason = check_room(11, Some(10)).unwrap_err();
        assert!(
            reason.contains("needs 11 bytes") && reason.contains("10 are available"),
            "{reason}"
        );
    }
}
