//! The GPT-NeoX network on a device: the forward of training and its hand-written backward. The
//! forward of decoding is in [`decoding`].

pub(crate) mod block;
pub(crate) mod decoding;
pub(crate) mod linear;
pub(crate) mod pass;

use rayon::prelude::*;

use crate::base::Base;
use crate::config::Config;
use crate::error::Result;
use crate::lora::{Lora, Module};
use crate::ops::factors::Factors;
use crate::ops::training::Learn;
use crate::ops::{Heads, Norm, Ops};
use block::{Block, Gradient, LayerTape};
use linear::{Backward, Need};
use pass::{Pass, Shared};

/// The frozen network on a device.
pub(crate) struct Network<O: Ops> {
    pub(crate) shared: Shared<O>,
    pub(crate) embedding: O::Array,
    pub(crate) blocks: Vec<Block<O>>,
    pub(crate) final_norm: Norm<O::Array>,
    pub(crate) head: O::Array,
}

/// The values of a forward that backward needs: none of the layers below the first adapted one.
pub(crate) struct Tape<A> {
    layers: Vec<Option<LayerTape<A>>>,
}

impl<A> Tape<A> {
    pub(crate) fn new() -> Self {
        Self { layers: Vec::new() }
    }
}

impl<O: Ops> Network<O> {
    /// Brings a base onto the device.
    pub(crate) fn new(ops: O, base: &Base) -> Result<Self> {
        let config = base.config().clone();
        // In the order of `shapes`, because the next tensors of that order are fetched ahead.
        let embedding = base.array(&ops, "gpt_neox.embed_in.weight")?;
        let blocks = (0..config.num_hidden_layers)
            .map(|layer| Block::new(&ops, base, layer))
            .collect::<Result<_>>()?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            base.array(&ops, "embed_out.weight")?
        };
        let network = Self {
            embedding,
            blocks,
            final_norm: block::norm(&ops, base, "gpt_neox.final_layer_norm")?,
            head,
            shared: Shared {
                heads: heads(&ops, &config)?,
                config,
                ops,
            },
        };
        network.ops().loaded()?;
        Ok(network)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    pub(crate) fn ops(&self) -> &O {
        &self.shared.ops
    }

    /// Brings an adapter onto the device.
    pub(crate) fn factors(&self, lora: &Lora) -> Result<Factors<O::Array>> {
        lora.check_fits(&self.shared.config)?;
        self.factors_of(lora.modules(), &self.ops().flat(lora.values())?)
    }

    /// The factors of an adapter whose values lie on the device.
    pub(crate) fn factors_of(
        &self,
        modules: &[Module],
        values: &O::Flat,
    ) -> Result<Factors<O::Array>> {
        Factors::new(self.ops(), &self.shared.config, modules, values)
    }

    /// The logits of some rows of the residual stream: (rows, vocabulary).
    pub(crate) fn logits(&self, hidden: &O::Array, rows: &[u32]) -> Result<Vec<f32>> {
        let logits = self.project(&self.ops().gather(hidden, rows)?)?;
        self.ops().download(&logits)
    }

    fn project(&self, x: &O::Array) -> Result<O::Array> {
        let normed = self.ops().layer_norm(x, &self.final_norm)?;
        self.ops().linear(&normed, &self.head)
    }
}

impl<O: Learn> Network<O> {
    /// The residual stream after the last layer, before the final norm: (rows, hidden). Fills the
    /// tape.
    pub(crate) fn forward(
        &self,
        pass: &Pass<'_, O>,
        mut tape: Option<&mut Tape<O::Array>>,
    ) -> Result<O::Array> {
        let first = pass.first_adapted();
        let mut x = self.ops().gather(&self.embedding, pass.ids)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let (next, saved) = block.forward(&self.shared, layer, x, pass)?;
            x = next;
            if let Some(tape) = &mut tape {
                let is_needed = first.is_some_and(|first| layer >= first);
                tape.layers.push(is_needed.then_some(saved));
            }
        }
        Ok(x)
    }

    /// Adds the adapter's gradients to `grads`, from the residual stream's gradient `d_hidden`. It
    /// ends at the first adapted product of the first adapted layer, because nothing below it is
    /// trainable.
    pub(crate) fn backward(
        &self,
        pass: &Pass<'_, O>,
        mut tape: Tape<O::Array>,
        d_hidden: O::Array,
        grads: &mut O::Flat,
    ) -> Result<()> {
        let Some(first) = pass.first_adapted() else {
            return Ok(());
        };
        let mut dx = Gradient::from(d_hidden);
        for (layer, block) in self.blocks.iter().enumerate().skip(first).rev() {
            // Popped, so that a layer's tape is freed as soon as it has been used.
            let Some(saved) = tape.layers.pop().flatten() else {
                return Ok(());
            };
            let below = if layer > first {
                Need::Input
            } else {
                Need::Factors
            };
            let mut backward = Backward {
                ops: self.ops(),
                layer,
                pass,
                grads,
            };
            let Some(next) = block.backward(&self.shared, &mut backward, saved, dx, below)? else {
                return Ok(());
            };
            dx = next;
        }
        Ok(())
    }

    /// The sum of the cross-entropies of `targets`, predicted by `rows` of the residual stream.
    pub(crate) fn loss(&self, hidden: &O::Array, rows: &[u32], targets: &[u32]) -> Result<f64> {
        let mut sum = self.ops().sum()?;
        for (rows, targets) in self.parts(rows, targets) {
            let x = self.ops().gather(hidden, rows)?;
            let logits = self.project(&x)?;
            self.ops().cross_entropy(&mut sum, &logits, targets, 1.0)?;
        }
        self.ops().read_sum(&sum)
    }

    /// [`Network::loss`], and `factor` times its gradient with respect to the residual stream of
    /// `total` rows. Only rows with a target go through the head.
    pub(crate) fn loss_with_gradient(
        &self,
        hidden: &O::Array,
        total: usize,
        rows: &[u32],
        targets: &[u32],
        factor: f32,
    ) -> Result<(O::Sum, O::Array)> {
        let width = self.shared.config.hidden_size;
        let d_hidden = self.ops().zeros(total, width)?;
        let mut sum = self.ops().sum()?;
        for (rows, targets) in self.parts(rows, targets) {
            let x = self.ops().gather(hidden, rows)?;
            let logits = self.project(&x)?;
            self.ops()
                .cross_entropy(&mut sum, &logits, targets, factor)?;
            let d_normed = self.ops().product(&logits, &self.head)?;
            let dx = self.ops().zeros(rows.len(), width)?;
            self.ops()
                .layer_norm_backward(&dx, &d_normed, &x, &self.final_norm)?;
            self.ops().scatter(&d_hidden, &dx, rows)?;
        }
        Ok((sum, d_hidden))
    }

    fn parts<'a>(
        &self,
        rows: &'a [u32],
        targets: &'a [u32],
    ) -> impl Iterator<Item = (&'a [u32], &'a [u32])> + use<'a, O> {
        let at_once = (O::LOGITS_AT_ONCE / self.shared.config.vocab_size).max(1);
        rows.chunks(at_once).zip(targets.chunks(at_once))
    }
}

/// The rotary tables: pair `i` of the rotated dimensions is rotated by
/// position × base^(−2i / dimensions).
fn heads<O: Ops>(ops: &O, config: &Config) -> Result<Heads<O::Array>> {
    let (rotary_dims, positions) = (config.rotary_dim(), config.max_position_embeddings);
    let half = rotary_dims / 2;
    // As the reference: frequency and angle in f32.
    let frequencies: Vec<f32> = (0..half)
        .map(|pair| {
            let power = (2 * pair) as f64 / rotary_dims as f64;
            (1.0 / config.rotary_emb_base.powf(power)) as f32
        })
        .collect();
    let (cos, sin): (Vec<f32>, Vec<f32>) = (0..positions * half)
        .into_par_iter()
        .with_min_len(1 << 12)
        .map(|place| {
            let angle = (place / half) as f32 * frequencies[place % half];
            (angle.cos(), angle.sin())
        })
        .unzip();
    Ok(Heads {
        count: config.num_attention_heads,
        dim: config.head_dim(),
        rotary_dims,
        cos: ops.upload(&cos, positions, half)?,
        sin: ops.upload(&sin, positions, half)?,
    })
}
