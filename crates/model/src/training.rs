//! An adapter in training: its values, their gradients and the optimizer's moments, all on the
//! engine's device.

use crate::batch::{Batch, WindowLoss};
use crate::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::cuda::Cuda;
use crate::dropout::Dropout;
use crate::engine::{Engine, OnDevice, on};
use crate::error::{Error, Result};
use crate::lora::Lora;
use crate::network::Network;
use crate::ops::factors::Factors;
use crate::ops::training::Learn;
use crate::optim::{self, AdamW, AdamWConfig, Coefficients, LossScale};
use crate::world::World;

/// A training run. A step is any count of [`Training::accumulate`] and one [`Training::step`].
pub struct Training<'a> {
    lora: Lora,
    world: World,
    state: States<'a>,
}

enum States<'a> {
    Cpu(State<'a, Cpu>),
    #[cfg(feature = "cuda")]
    Cuda(State<'a, Cuda>),
}

/// Everything that training changes, on a device.
struct State<'a, O: Learn> {
    network: &'a Network<O>,
    values: O::Flat,
    /// The gradients of the sum of the window's losses.
    gradients: O::Flat,
    moments: [O::Flat; 2],
    config: AdamWConfig,
    steps: u64,
    /// Only on a device that scales losses.
    loss_scale: Option<LossScale>,
    /// Steps that were skipped because a gradient overflowed.
    skipped: u64,
    /// The values as matrices, made anew in each step.
    factors: Factors<O::Array>,
    /// Sum and targets of each pass of the window. They are read late, so that nothing waits for
    /// the device before.
    losses: Vec<(O::Sum, u64)>,
}

impl<'a> Training<'a> {
    /// Brings an adapter and its optimizer to the engine's device.
    ///
    /// # Errors
    /// The adapter does not fit the engine's base, the optimizer does not fit the adapter, or the
    /// world has a size that is not built.
    pub fn new(engine: &'a Engine, lora: &Lora, optimizer: &AdamW, world: World) -> Result<Self> {
        if world != World::ALONE {
            let reason = format!("is rank {} of {}; one is built", world.rank, world.size);
            return Err(Error::field("world", reason));
        }
        let state = match engine.on_device() {
            OnDevice::Cpu(on) => States::Cpu(State::new(&on.network, lora, optimizer)?),
            #[cfg(feature = "cuda")]
            OnDevice::Cuda(on) => States::Cuda(State::new(&on.network, lora, optimizer)?),
        };
        Ok(Self {
            lora: lora.clone(),
            world,
            state,
        })
    }

    /// Runs a batch forward and backward in one pass, and adds the gradient of the *sum* of its
    /// token losses to the window's. The dropout must be the one of the window's step.
    /// [`Engine::passes`] cuts a window into batches that fit.
    ///
    /// The same input always gives the same bits.
    ///
    /// # Errors
    /// The batch does not fit the model; nothing has changed then.
    pub fn accumulate(&mut self, batch: &Batch, dropout: Option<&Dropout>) -> Result<()> {
        on!(States, &mut self.state, state => state.accumulate(batch, dropout))
    }

    /// Ends the window: one step of AdamW along the gradient of its mean token loss, clipped to
    /// `largest_norm` (0: any). Returns the loss, and the norm before clipping.
    ///
    /// The sum over all batches is divided once, by the count of targets in the window, so that a
    /// target weighs the same in every batch and record. If loss or norm is not finite, the step is
    /// not taken.
    ///
    /// In fp16 the loss is scaled. If a gradient overflows while the loss is finite, the scale is
    /// halved, the step is skipped ([`Training::skipped`]), and the norm is returned as 0. If
    /// halving does not help, the norm is not finite.
    ///
    /// # Errors
    /// The device's.
    pub fn step(&mut self, rate: f64, largest_norm: f64) -> Result<(WindowLoss, f64)> {
        let (lora, world) = (&self.lora, self.world);
        on!(States, &mut self.state, state => state.step(lora, world, rate, largest_norm))
    }

    /// Steps that were skipped because a gradient overflowed fp16.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        on!(States, &self.state, state => state.skipped)
    }

    /// The window's loss so far.
    ///
    /// # Errors
    /// The device's.
    pub fn loss(&self) -> Result<WindowLoss> {
        on!(States, &self.state, state => state.loss())
    }

    /// The gradients of the sum of the window's losses so far, in the order of the adapter's flat
    /// buffer.
    ///
    /// # Errors
    /// The device's.
    pub fn gradients(&self) -> Result<Vec<f32>> {
        on!(States, &self.state, state => state.gradients())
    }

    /// The adapter as it is now.
    ///
    /// # Errors
    /// The device's.
    pub fn lora(&self) -> Result<Lora> {
        let values =
            on!(States, &self.state, state => state.network.ops().read_flat(&state.values))?;
        let mut lora = self.lora.clone();
        lora.values_mut().copy_from_slice(&values);
        Ok(lora)
    }

    /// The optimizer as it is now.
    ///
    /// # Errors
    /// The device's.
    pub fn optimizer(&self) -> Result<AdamW> {
        on!(States, &self.state, state => state.optimizer())
    }
}

impl<'a, O: Learn> State<'a, O> {
    fn new(network: &'a Network<O>, lora: &Lora, optimizer: &AdamW) -> Result<Self> {
        let (config, steps, [first, second]) = optimizer.parts();
        if first.len() != lora.len() {
            let reason = format!("{} moments for {} values", first.len(), lora.len());
            return Err(Error::format("optimizer state", reason));
        }
        lora.check_fits(network.config())?;
        let ops = network.ops();
        let values = ops.flat(lora.values())?;
        Ok(Self {
            factors: network.factors_of(lora.modules(), &values)?,
            values,
            gradients: ops.flat(&vec![0.0; lora.len()])?,
            moments: [ops.flat(first)?, ops.flat(second)?],
            config,
            steps,
            loss_scale: ops
                .scales_loss()
                .then(|| optimizer.loss_scale().unwrap_or_default()),
            skipped: 0,
            losses: Vec::new(),
            network,
        })
    }

    fn accumulate(&mut self, batch: &Batch, dropout: Option<&Dropout>) -> Result<()> {
        let (network, factors, factor) = (self.network, &self.factors, self.factor());
        let loss = network.learn(batch, factors, dropout, &mut self.gradients, factor)?;
        self.losses.extend(loss);
        Ok(())
    }

    /// The factor on the gradients so far: a power of two.
    fn factor(&self) -> f32 {
        self.loss_scale.map_or(1.0, LossScale::factor)
    }

    fn gradients(&self) -> Result<Vec<f32>> {
        let mut gradients = self.network.ops().read_flat(&self.gradients)?;
        let back = 1.0 / self.factor();
        gradients.iter_mut().for_each(|gradient| *gradient *= back);
        Ok(gradients)
    }

    fn loss(&self) -> Result<WindowLoss> {
        let mut loss = WindowLoss::default();
        for (sum, targets) in &self.losses {
            loss.add(WindowLoss {
                sum: self.network.ops().read_sum(sum)?,
                targets: *targets,
            });
        }
        Ok(loss)
    }

    fn step(
        &mut self,
        lora: &Lora,
        world: World,
        rate: f64,
        largest_norm: f64,
    ) -> Result<(WindowLoss, f64)> {
        let ops = self.network.ops();
        let loss = self.all_ranks(world)?;
        let divisor = loss.targets.max(1) as f32 * self.factor();
        ops.scale_flat(&mut self.gradients, 1.0 / divisor)?;
        let mut norm = ops.l2_norm(&self.gradients)?;
        if loss.sum.is_finite() && norm.is_finite() {
            let clip = optim::clip_factor(norm, largest_norm).filter(|_| largest_norm > 0.0);
            if let Some(factor) = clip {
                ops.scale_flat(&mut self.gradients, factor)?;
            }
            self.steps += 1;
            let coefficients = Coefficients::new(self.config, self.steps, rate);
            let [first, second] = &mut self.moments;
            let moments = (first, second);
            ops.adamw(&mut self.values, &self.gradients, moments, &coefficients)?;
            self.factors = self.network.factors_of(lora.modules(), &self.values)?;
            self.loss_scale = self.loss_scale.map(LossScale::after_step);
        } else if loss.sum.is_finite()
            && let Some(smaller) = self.loss_scale.and_then(LossScale::after_overflow)
        {
            self.loss_scale = Some(smaller);
            self.skipped += 1;
            norm = 0.0;
        }
        ops.clear(&mut self.gradients)?;
        self.losses.clear();
        Ok((loss, norm))
    }

    /// The window's loss over all ranks. Here, between backward and optimizer, several ranks would
    /// sum their losses and flat gradients.
    fn all_ranks(&mut self, world: World) -> Result<WindowLoss> {
        debug_assert_eq!(world, World::ALONE, "checked when it was made");
        self.loss()
    }

    fn optimizer(&self) -> Result<AdamW> {
        let ops = self.network.ops();
        let [first, second] = &self.moments;
        let moments = [ops.read_flat(first)?, ops.read_flat(second)?];
        Ok(AdamW::from_parts(
            self.config,
            self.steps,
            moments,
            self.loss_scale,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{self, Base};
    use crate::lora::LoraConfig;
    use crate::target::Target;
    use crate::{Config, cpu};

    const CONFIG: &[u8] = br#"{"vocab_size": 37, "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 64}"#;

    /// On the CPU an overflow needs a scale near the largest f32. It is then halved as in fp16.
    #[test]
    fn an_overflow_halves_the_loss_scale_and_skips_the_step_and_no_other_scale_changes_it() {
        let config = Config::from_json(CONFIG).unwrap();
        let folder = tempfile::tempdir().unwrap();
        // A head of large values has large gradients.
        base::write(folder.path(), &config, |name, count| {
            let bound = if name == "embed_out.weight" {
                5e3
            } else {
                0.02
            };
            (0..count).map(|at| bound * (at as f32).sin()).collect()
        })
        .unwrap();
        let network = Network::new(cpu::Cpu, &Base::load(folder.path()).unwrap()).unwrap();
        let settings = LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            targets: Target::ALL.to_vec(),
        };
        let lora = Lora::init(&config, &settings, 11).unwrap();
        let mut batch = Batch::new();
        let ids: Vec<u32> = (0..17).map(|id| id * 7 % 37).collect();
        let labels: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        batch.push(&ids, &labels, 0);
        let optimizer = AdamW::new(lora.len(), AdamWConfig::default());
        let step = |loss_scale: Option<LossScale>| {
            let mut state = State::new(&network, &lora, &optimizer).unwrap();
            state.loss_scale = loss_scale;
            let mut told = Vec::new();
            while state.steps == 0 {
                state.accumulate(&batch, None).unwrap();
                let gradients = state.gradients().unwrap();
                told.push((
                    gradients,
                    state.step(&lora, World::ALONE, 1e-3, 1.0).unwrap(),
                ));
            }
            (told, state)
        };
        let (told, plain) = step(None);
        let (gradients, (loss, norm)) = told.last().unwrap();
        assert!(plain.loss_scale.is_none() && *norm > 0.0);

        let (told, scaled) = step(Some(LossScale::default()));
        assert_eq!(told.len(), 1);
        assert_eq!((&told[0].0, &told[0].1), (gradients, &(*loss, *norm)));
        assert_eq!(scaled.values, plain.values);

        let near_the_end = std::iter::successors(Some(LossScale::default()), |scale| {
            let patience = 0..LossScale::PATIENCE;
            Some(patience.fold(*scale, |scale, _| scale.after_step()))
        });
        let far = near_the_end.take_while(|scale| scale.scale() < f32::INFINITY);
        let (told, scaled) = step(far.last());
        let (last, overflowed) = told.split_last().unwrap();
        assert!(!overflowed.is_empty());
        for (_, told) in overflowed {
            assert_eq!(*told, (*loss, 0.0));
        }
        assert_eq!(scaled.skipped, overflowed.len() as u64);
        assert_eq!(
            (last.0.as_slice(), &last.1),
            (gradients.as_slice(), &(*loss, *norm))
        );
        assert_eq!(scaled.values, plain.values);
        let optimizer = scaled.optimizer().unwrap();
        let end = f64::from(f32::MAX).log2() as i32;
        let scale = optimizer.loss_scale().unwrap().scale();
        assert_eq!(scale, 2_f32.powi(end - 1 - overflowed.len() as i32 + 1));
    }
}
