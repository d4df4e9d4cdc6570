//! Decides whether a job fits into its device's memory, by the plan of the largest pass over the
//! rows in the order in which the job will read them.

use togi_model::memory::{self, Plan};
use togi_model::{Config, DeviceName};

use crate::error::{Error, Result};
use crate::learn::data::Order;
use crate::recipe::Recipe;

/// A job before it runs.
#[derive(Clone, Debug)]
pub(crate) struct Need {
    /// Its base.
    pub config: Config,
    /// Its recipe.
    pub recipe: Recipe,
    /// The device that it will run on.
    pub device: DeviceName,
    /// The rows that it trains on.
    pub lengths: Lengths,
}

/// The counts of ids in the rows.
#[derive(Clone, Debug)]
pub(crate) enum Lengths {
    /// The length of each row, in the stored order.
    Each(Vec<u32>),
    /// A bound for all rows.
    AtMost {
        /// Rows.
        rows: u64,
        /// Ids of the longest.
        length: u32,
    },
}

/// The memory of a job, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Its parts.
    pub parts: Plan,
    /// Tokens of the largest pass.
    pub tokens: usize,
    /// The memory that is available, if it is known.
    pub available: Option<u64>,
    /// The device.
    pub device: DeviceName,
}

impl Need {
    /// Returns the plan.
    ///
    /// # Errors
    /// [`Error::Memory`] if it is above what is available, with the largest micro-batch that is
    /// not. If the available memory is unknown, everything fits.
    pub(crate) fn check(&self, available: Option<u64>) -> Result<MemoryPlan> {
        let tokens = self.largest_pass(self.recipe.batch_size);
        let parts = self.plan(tokens);
        match available {
            Some(available) if parts.total() > available => Err(Error::Memory {
                needed: parts.total(),
                available,
                plan: format!(
                    "weights {}, lora {}, optimizer {}, activations {}",
                    parts.weights,
                    parts.values,
                    parts.gradients + parts.moments,
                    parts.activations
                ),
                largest: self.largest_micro_batch(available),
                device: self.device.to_string(),
            }),
            _ => Ok(MemoryPlan {
                parts,
                tokens,
                available,
                device: self.device,
            }),
        }
    }

    fn plan(&self, tokens: usize) -> Plan {
        let precision = self.recipe.precision;
        let device = self.device.device(precision);
        memory::plan(&self.config, &self.recipe.lora, tokens, precision, device)
    }

    /// The largest micro-batch that fits; `None` if not even one record does. A larger micro-batch
    /// may need less memory, because the windows are cut differently; this is the best that
    /// bisection finds.
    fn largest_micro_batch(&self, available: u64) -> Option<u32> {
        let (mut fits, mut too_large) = (0, self.recipe.batch_size);
        while too_large - fits > 1 {
            let middle = fits + (too_large - fits) / 2;
            if self.plan(self.largest_pass(middle)).total() <= available {
                fits = middle;
            } else {
                too_large = middle;
            }
        }
        (fits > 0).then_some(fits)
    }

    /// The tokens of the largest pass with micro-batches of `batch_size` records.
    fn largest_pass(&self, batch_size: u32) -> usize {
        let recipe = Recipe {
            batch_size,
            ..self.recipe.clone()
        };
        let precision = recipe.precision;
        let device = self.device.device(precision);
        let largest =
            |window: &[usize]| memory::largest_pass(window, batch_size as usize, precision, device);
        match &self.lengths {
            Lengths::AtMost { rows, length } => {
                let records = recipe.window().min(*rows);
                largest(&vec![*length as usize; records as usize])
            }
            Lengths::Each(lengths) => {
                let windows = windows(&recipe, lengths);
                windows
                    .iter()
                    .map(|window| largest(window))
                    .max()
                    .unwrap_or(0)
            }
        }
    }
}

/// The lengths of each window's rows, in the order in which they are read.
fn windows(recipe: &Recipe, lengths: &[u32]) -> Vec<Vec<usize>> {
    let rows = lengths.len();
    let order = Order {
        dataset: String::new(),
        split: togi_tokens::Split::Train,
        rows: rows as u64,
        seed: recipe.seed,
        shuffle: recipe.shuffle,
        epochs: u64::from(recipe.epochs),
    };
    let places = order.places().filter_map(|place| {
        let length = lengths.get(usize::try_from(place).ok()?)?;
        Some(*length as usize)
    });
    let read: Vec<usize> = places.collect();
    let window = usize::try_from(recipe.window()).unwrap_or(usize::MAX);
    let steps = usize::try_from(recipe.steps(rows as u64)).unwrap_or(usize::MAX);
    let epochs = read.chunks(rows.max(1));
    let windows = epochs.flat_map(|epoch| epoch.chunks(window));
    windows.take(steps).map(<[usize]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use togi_model::Precision;

    use super::*;

    fn need(device: &str, lengths: Lengths) -> Need {
        let config = br#"{"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 128, "max_position_embeddings": 4096}"#;
        let recipe = "batch_size = 4\naccumulation = 2\nepochs = 2\nmax_steps = 3\nseed = 7";
        Need {
            config: Config::from_json(config).unwrap(),
            recipe: Recipe::from_toml(recipe).unwrap(),
            device: device.parse().unwrap(),
            lengths,
        }
    }

    #[test]
    fn the_largest_pass_is_the_largest_that_will_be_read() {
        let lengths: Vec<u32> = (0..20).map(|row| 10 + row * row).collect();
        let mut need = need("cpu", Lengths::Each(lengths.clone()));
        // By hand: three windows in micro-batches of four. The end of the epoch cuts the third
        // window short.
        let order = Order {
            dataset: String::new(),
            split: togi_tokens::Split::Train,
            rows: 20,
            seed: 7,
            shuffle: true,
            epochs: 1,
        };
        let read: Vec<u32> = order.places().map(|row| lengths[row as usize]).collect();
        let sums = read.chunks(4).map(|batch| batch.iter().sum::<u32>());
        let largest = sums.max().unwrap() as usize;
        assert_eq!(need.largest_pass(4), largest);
        assert_eq!(need.check(None).unwrap().tokens, largest);
        // With only the maximum length known, the plan is larger.
        need.lengths = Lengths::AtMost {
            rows: 20,
            length: 371,
        };
        assert_eq!(need.largest_pass(4), 4 * 371);
        need.lengths = Lengths::AtMost {
            rows: 3,
            length: 371,
        };
        assert_eq!(need.largest_pass(4), 3 * 371);
    }

    #[test]
    fn a_gpu_takes_a_window_in_its_own_passes() {
        let lengths = Lengths::AtMost {
            rows: 100,
            length: 1000,
        };
        let mut need = need("cuda", lengths);
        need.recipe.precision = Precision::Nf4;
        assert_eq!(need.largest_pass(4), 2000);
        need.recipe.precision = Precision::Bf16;
        assert_eq!(need.largest_pass(4), 4000);
        // Two micro-batches of unequal records, in one pass that is no larger than a micro-batch of
        // the longest.
        need.lengths = Lengths::Each(vec![900, 100, 100, 100, 100, 100, 100, 100]);
        assert_eq!(need.largest_pass(4), 1600);
        need.device = DeviceName::Cpu;
        assert_eq!(need.largest_pass(4), 1200);
    }

    #[test]
    fn a_refusal_has_the_figures_of_the_plan() {
        let lengths = Lengths::AtMost {
            rows: 100,
            length: 50,
        };
        for device in ["cpu", "cuda:1"] {
            let mut need = need(device, lengths.clone());
            need.recipe.precision = Precision::Bf16;
            let accepted = need.check(None).unwrap().parts;
            let values = memory::trainable(&need.config, &need.recipe.lora);
            // A GPU also holds the values in bf16.
            let held = if device == "cpu" { 4 } else { 4 + 2 };
            assert_eq!(accepted.values, held * values);
            assert_eq!(accepted.gradients + accepted.moments, (4 + 8) * values);
            let Err(Error::Memory { plan, .. }) = need.check(Some(0)) else {
                panic!("nothing fits into no memory");
            };
            assert_eq!(
                plan,
                format!(
                    "weights {}, lora {}, optimizer {}, activations {}",
                    accepted.weights,
                    accepted.values,
                    accepted.gradients + accepted.moments,
                    accepted.activations
                )
            );
        }
    }

    #[test]
    fn a_refusal_names_the_largest_micro_batch_that_fits() {
        let lengths = Lengths::AtMost {
            rows: 100,
            length: 50,
        };
        let need = need("cuda:1", lengths);
        let plan = |batch_size| need.plan(need.largest_pass(batch_size)).total();
        let fits = need.check(Some(plan(4))).unwrap();
        assert_eq!(fits.parts.total(), plan(4));
        assert_eq!(fits.device.to_string(), "cuda:1");
        for (available, largest) in [
            (plan(4) - 1, Some(3)),
            (plan(2), Some(2)),
            (plan(1), Some(1)),
            (plan(1) - 1, None),
        ] {
            match need.check(Some(available)) {
                Err(Error::Memory { largest: found, .. }) => assert_eq!(found, largest),
                other => panic!("{other:?}"),
            }
        }
    }
}
