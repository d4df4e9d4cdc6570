//! What it changes that an adapter is served over another representation of its base than in
//! training: the logits that follow its card's sample prompts, over the one and over the other. The
//! base is read once more for that, and let go again.

use std::path::PathBuf;
use std::sync::Arc;

use togi_model::{DeviceName, Engine, Precision};
use togi_runtime::process::memory;
use togi_tokens::Tokenizer;

use super::loader::{Loader, with_cause};
use crate::engine::door::Door;
use crate::served_adapter::ServedAdapter;

/// An adapter over another representation of its base.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mismatch {
    /// How the base was held in training.
    pub(crate) trained_over: String,
    /// How it is held here.
    pub(crate) served_over: String,
    /// What that changes, or why it was not measured.
    pub(crate) difference: Result<Difference, String>,
}

/// Absolute differences of logits, over all ids of the vocabulary and all samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Difference {
    /// The largest.
    pub(crate) max: f64,
    /// Their mean.
    pub(crate) mean: f64,
    /// Prompts that were measured.
    pub(crate) samples: usize,
}

/// Measures mismatches.
pub(crate) struct Gauge {
    pub(crate) loader: Arc<Loader>,
    pub(crate) base_folder: PathBuf,
    pub(crate) device: DeviceName,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) door: Arc<Door>,
}

impl Gauge {
    /// Measures what the mismatch of a generation changes. It is served already: nothing here fails
    /// it.
    pub(crate) async fn measure(&self, generation: &Arc<ServedAdapter>) -> Mismatch {
        let mismatch = Mismatch {
            trained_over: generation.trained_over().to_owned(),
            served_over: self.loader.expected.base_precision.clone(),
            difference: self.difference(generation).await,
        };
        let generation = generation.digest();
        let (trained_over, served_over) = (&mismatch.trained_over, &mismatch.served_over);
        match &mismatch.difference {
            Ok(Difference { max, mean, samples }) => tracing::info!(
                generation,
                trained_over,
                served_over,
                max,
                mean,
                samples,
                "base mismatch measured"
            ),
            Err(reason) => tracing::warn!(
                generation,
                trained_over,
                served_over,
                reason,
                "base mismatch not measured"
            ),
        }
        mismatch
    }

    async fn difference(&self, generation: &Arc<ServedAdapter>) -> Result<Difference, String> {
        let samples = self.loader.samples(generation.digest()).await;
        let samples = samples.map_err(|error| with_cause(&error))?;
        if samples.is_empty() {
            return Err("the model card has no sample prompts".into());
        }
        let precision = generation.trained_over();
        let precision = Precision::from_name(precision).map_err(|error| error.to_string())?;
        let other = self.other_base(precision).await?;
        let mut differences = Differences::default();
        for sample in &samples {
            let prompt = self.tokenizer.encode(sample);
            let logits = async |engine: &Arc<Engine>| {
                let logits = self
                    .door
                    .probe(engine.clone(), generation.clone(), prompt.clone());
                logits.await.map_err(|error| with_cause(&error))
            };
            let served = logits(&self.loader.engine).await?;
            differences.add(&served, &logits(&other).await?);
        }
        differences.over(samples.len())
    }

    /// Reads the base as it was held in training.
    async fn other_base(&self, precision: Precision) -> Result<Arc<Engine>, String> {
        let (name, device) = (self.device, self.device.device(precision));
        // A GPU refuses a base that does not fit.
        if name == DeviceName::Cpu {
            let needed =
                togi_model::memory::weights(self.loader.engine.config(), precision, device);
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
        if engine.base().digest() != self.loader.expected.base {
            return Err("the base's files have changed since it was loaded".into());
        }
        Ok(Arc::new(engine))
    }
}

/// Whether there is memory for the second representation; where the system does not say, there is.
fn check_room(needed: u64, available: Option<u64>) -> Result<(), String> {
    match available {
        Some(available) if available < needed => Err(format!(
            "the base as in training needs {needed} bytes of memory and {available} are available"
        )),
        _ => Ok(()),
    }
}

/// Absolute differences as they add up.
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
        // The largest alone would hide a logit that is no number.
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
