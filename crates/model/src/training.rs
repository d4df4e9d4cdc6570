//! An adapter in training: its values, their gradients and the optimizer's moments, all on the engine's device.

use crate::batch::{Batch, WindowLoss};
use crate::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::cuda::Cuda;
use crate::dropout::Dropout;
use crate::engine::{Engine, Networks, on};
use crate::error::{Error, Result};
use crate::lora::Lora;
use crate::network::{Factors, Network};
use crate::ops::Ops;
use crate::optim::{self, AdamW, AdamWConfig, Coefficients};

/// Which of several processes of one training this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// From 0.
    pub rank: usize,
    /// Processes.
    pub size: usize,
}

impl World {
    /// A process on its own.
    pub const ALONE: Self = Self { rank: 0, size: 1 };
}

/// A training between two steps, or inside of one: a step is any count of [`Training::accumulate`] and one [`Training::step`].
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

/// What changes in training, on a device.
struct State<'a, O: Ops> {
    network: &'a Network<O>,
    values: O::Flat,
    /// Of the sum of the window's losses.
    gradients: O::Flat,
    moments: [O::Flat; 2],
    config: AdamWConfig,
    steps: u64,
    /// The values' matrices: made anew once a step.
    factors: Factors<O::Array>,
    /// Sum and targets of each batch of the window; read when somebody asks, so that nothing waits for the device before.
    losses: Vec<(O::Sum, u64)>,
}

impl<'a> Training<'a> {
    /// Brings an adapter and its optimizer to the engine's device.
    ///
    /// # Errors
    /// The adapter is not of the engine's base, the optimizer not of the adapter, or the world of a size that is not built.
    pub fn new(engine: &'a Engine, lora: &Lora, optimizer: &AdamW, world: World) -> Result<Self> {
        if world != World::ALONE {
            let reason = format!("is rank {} of {}; one is built", world.rank, world.size);
            return Err(Error::field("world", reason));
        }
        let state = match engine.networks() {
            Networks::Cpu(network) => States::Cpu(State::new(network, lora, optimizer)?),
            #[cfg(feature = "cuda")]
            Networks::Cuda(network) => States::Cuda(State::new(network, lora, optimizer)?),
        };
        Ok(Self {
            lora: lora.clone(),
            world,
            state,
        })
    }

    /// Runs a batch forward and backward, and adds the gradient of the *sum* of its token losses to the window's. Dropout is
    /// the one of the window's step.
    ///
    /// The same input gives the same bits, whatever else the machine does.
    ///
    /// # Errors
    /// The batch does not fit the model; nothing is changed then.
    pub fn accumulate(&mut self, batch: &Batch, dropout: Option<&Dropout>) -> Result<()> {
        on!(States, &mut self.state, state => state.accumulate(batch, dropout))
    }

    /// Ends the window: one step of AdamW along the gradient of its mean token loss, clipped to `largest_norm` (0: any).
    /// Returns the loss, and the norm before clipping.
    ///
    /// The sum over all batches is divided once, by what the whole window has learned, so a target weighs the same whichever
    /// batch or record it stands in. If loss or norm is not finite, the step is not taken.
    ///
    /// # Errors
    /// The device's.
    pub fn step(&mut self, rate: f64, largest_norm: f64) -> Result<(WindowLoss, f64)> {
        on!(States, &mut self.state, state => state.step(&self.lora, self.world, rate, largest_norm))
    }

    /// The window's loss so far.
    ///
    /// # Errors
    /// The device's.
    pub fn loss(&self) -> Result<WindowLoss> {
        on!(States, &self.state, state => state.loss())
    }

    /// The window's gradients so far, of the sum of its losses, as the adapter's flat buffer lies.
    ///
    /// # Errors
    /// The device's.
    pub fn gradients(&self) -> Result<Vec<f32>> {
        on!(States, &self.state, state => state.network.ops().read_flat(&state.gradients))
    }

    /// The adapter as it stands.
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

    /// The optimizer as it stands.
    ///
    /// # Errors
    /// The device's.
    pub fn optimizer(&self) -> Result<AdamW> {
        on!(States, &self.state, state => state.optimizer())
    }
}

impl<'a, O: Ops> State<'a, O> {
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
            losses: Vec::new(),
            network,
        })
    }

    fn accumulate(&mut self, batch: &Batch, dropout: Option<&Dropout>) -> Result<()> {
        let (network, factors) = (self.network, &self.factors);
        let loss = network.learn(batch, factors, dropout, &mut self.gradients)?;
        self.losses.extend(loss);
        Ok(())
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
        ops.scale_flat(&mut self.gradients, 1.0 / loss.targets.max(1) as f32)?;
        let norm = ops.norm(&self.gradients)?;
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
        }
        ops.clear(&mut self.gradients)?;
        self.losses.clear();
        Ok((loss, norm))
    }

    /// The window's loss over all ranks: between backward and optimizer, their losses and flat gradients are to be summed here.
    fn all_ranks(&mut self, world: World) -> Result<WindowLoss> {
        debug_assert_eq!(world, World::ALONE, "checked when it was made");
        self.loss()
    }

    fn optimizer(&self) -> Result<AdamW> {
        let ops = self.network.ops();
        let [first, second] = &self.moments;
        let moments = [ops.read_flat(first)?, ops.read_flat(second)?];
        Ok(AdamW::from_parts(self.config, self.steps, moments))
    }
}
