//! The GPT-NeoX network: one forward for training and for cached decoding, and its hand-written backward beside it.

mod block;
mod linear;

use std::ops::Range;

use rayon::prelude::*;

use crate::base::Base;
use crate::config::Config;
use crate::dropout::Dropout;
use crate::error::Result;
use crate::lora::{Lora, Module};
use crate::ops::{Heads, Norm, Ops};
use block::{Block, Gradient, LayerTape};
pub(crate) use linear::Factors;
use linear::Way;

/// The frozen network on a device.
pub(crate) struct Network<O: Ops> {
    ops: O,
    config: Config,
    embedding: O::Array,
    blocks: Vec<Block<O>>,
    heads: Heads<O::Array>,
    final_norm: Norm<O::Array>,
    head: O::Array,
    /// Tokens that training takes in one pass.
    at_once: usize,
}

/// Rows that run with one adapter.
pub(crate) struct Group<'a, O: Ops> {
    pub(crate) rows: Range<usize>,
    pub(crate) factors: &'a Factors<O::Array>,
}

/// What one forward runs on.
pub(crate) struct Pass<'a, O: Ops> {
    /// Token ids of all spans.
    pub(crate) ids: &'a [u32],
    /// Where the rows stand.
    pub(crate) layout: &'a O::Layout,
    /// Which rows run with which adapter; in training one group of all rows.
    pub(crate) groups: Vec<Group<'a, O>>,
    /// Dropout on the adapters' inputs.
    pub(crate) dropout: Option<&'a Dropout>,
    /// A cache for each span when decoding, none in training.
    pub(crate) caches: Vec<&'a mut O::Cache>,
}

/// What backward needs of a forward: nothing for the layers below the first adapted one.
pub(crate) struct Tape<A> {
    layers: Vec<Option<LayerTape<A>>>,
}

impl<A> Tape<A> {
    pub(crate) fn new() -> Self {
        Self { layers: Vec::new() }
    }
}

impl<O: Ops> Network<O> {
    /// Brings a base onto the device; training takes `at_once` tokens in one pass.
    pub(crate) fn new(ops: O, base: &Base, at_once: usize) -> Result<Self> {
        let config = base.config().clone();
        // In the order of `shapes`, so that a card is sent the next tensors before they are asked for.
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
            heads: heads(&ops, &config)?,
            final_norm: Norm::new(&ops, base, "gpt_neox.final_layer_norm")?,
            head,
            at_once,
            config,
            ops,
        };
        network.ops.loaded()?;
        Ok(network)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn at_once(&self) -> usize {
        self.at_once
    }

    pub(crate) fn ops(&self) -> &O {
        &self.ops
    }

    /// Brings an adapter onto the device.
    pub(crate) fn factors(&self, lora: &Lora) -> Result<Factors<O::Array>> {
        lora.check_fits(&self.config)?;
        self.factors_of(lora.modules(), &self.ops.flat(lora.values())?)
    }

    /// The factors of an adapter whose values lie on the device.
    pub(crate) fn factors_of(
        &self,
        modules: &[Module],
        values: &O::Flat,
    ) -> Result<Factors<O::Array>> {
        Factors::new(&self.ops, &self.config, modules, values)
    }

    /// The residual stream after the last layer, before the final norm: (rows, hidden). With a tape, what backward needs.
    pub(crate) fn forward(
        &self,
        pass: &mut Pass<'_, O>,
        mut tape: Option<&mut Tape<O::Array>>,
    ) -> Result<O::Array> {
        let first = pass.first_adapted();
        let mut x = self.ops.gather(&self.embedding, pass.ids)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let (next, kept) = block.forward(self, layer, x, pass)?;
            x = next;
            if let Some(tape) = &mut tape {
                tape.layers
                    .push(kept.filter(|_| first.is_some_and(|first| layer >= first)));
            }
        }
        Ok(x)
    }

    /// Adds the gradient of what `d_hidden` belongs to onto `grads`. It goes down to the first adapted layer and there to
    /// its first adapted product: nothing frozen gets a gradient, and no input that nothing trainable lies below.
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
            let Some(kept) = tape.layers.pop().flatten() else {
                return Ok(());
            };
            let below = if layer > first {
                linear::Need::Input
            } else {
                linear::Need::Factors
            };
            let mut way = Way {
                ops: &self.ops,
                layer,
                pass,
                grads,
            };
            let Some(next) = block.backward(self, &mut way, kept, dx, below)? else {
                return Ok(());
            };
            dx = next;
        }
        Ok(())
    }

    /// The sum of the cross-entropies of `targets`, predicted by `rows` of the residual stream.
    pub(crate) fn loss(&self, hidden: &O::Array, rows: &[u32], targets: &[u32]) -> Result<f64> {
        let mut sum = self.ops.sum()?;
        for (rows, targets) in self.parts(rows, targets) {
            let x = self.ops.gather(hidden, rows)?;
            let logits = self.project(&x)?;
            self.ops.cross_entropy(&mut sum, &logits, targets, 1.0)?;
        }
        self.ops.read_sum(&sum)
    }

    /// [`Network::loss`] and `factor` times its gradient with respect to the residual stream of `total` rows. Rows that predict
    /// nothing that is learned never meet the head.
    pub(crate) fn loss_with_gradient(
        &self,
        hidden: &O::Array,
        total: usize,
        rows: &[u32],
        targets: &[u32],
        factor: f32,
    ) -> Result<(O::Sum, O::Array)> {
        let width = self.config.hidden_size;
        let d_hidden = self.ops.zeros(total, width)?;
        let mut sum = self.ops.sum()?;
        for (rows, targets) in self.parts(rows, targets) {
            let x = self.ops.gather(hidden, rows)?;
            let logits = self.project(&x)?;
            self.ops.cross_entropy(&mut sum, &logits, targets, factor)?;
            let d_normed = self.ops.product(&logits, &self.head)?;
            let dx = self.ops.zeros(rows.len(), width)?;
            self.ops
                .layer_norm_backward(&dx, &d_normed, &x, &self.final_norm)?;
            self.ops.scatter(&d_hidden, &dx, rows)?;
        }
        Ok((sum, d_hidden))
    }

    /// The logits of some rows of the residual stream: (rows, vocabulary).
    pub(crate) fn logits(&self, hidden: &O::Array, rows: &[u32]) -> Result<Vec<f32>> {
        let logits = self.project(&self.ops.gather(hidden, rows)?)?;
        self.ops.download(&logits)
    }

    fn project(&self, x: &O::Array) -> Result<O::Array> {
        let normed = self.ops.layer_norm(x, &self.final_norm)?;
        self.ops.linear(&normed, &self.head, None)
    }

    fn parts<'a>(
        &self,
        rows: &'a [u32],
        targets: &'a [u32],
    ) -> impl Iterator<Item = (&'a [u32], &'a [u32])> + use<'a, O> {
        let at_once = (O::LOGITS_AT_ONCE / self.config.vocab_size).max(1);
        rows.chunks(at_once).zip(targets.chunks(at_once))
    }
}

impl<A> Norm<A> {
    /// A layer norm of the base.
    fn new<O: Ops<Array = A>>(ops: &O, base: &Base, name: &str) -> Result<Self> {
        Ok(Self {
            weight: base.array(ops, &format!("{name}.weight"))?,
            bias: base.array(ops, &format!("{name}.bias"))?,
            eps: base.config().layer_norm_eps as f32,
        })
    }
}

impl<O: Ops> Pass<'_, O> {
    /// The lowest layer that has an adapter in any group.
    fn first_adapted(&self) -> Option<usize> {
        self.groups
            .iter()
            .filter_map(|group| group.factors.first_adapted())
            .min()
    }
}

/// The rotary tables: pair `i` of the turned dimensions turns by position × base^(−2i / turned).
fn heads<O: Ops>(ops: &O, config: &Config) -> Result<Heads<O::Array>> {
    let (turned, positions) = (config.rotary_dim(), config.max_position_embeddings);
    let half = turned / 2;
    // As the reference: frequency and angle in f32.
    let frequencies: Vec<f32> = (0..half)
        .map(|pair| {
            let power = (2 * pair) as f64 / turned as f64;
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
        turned,
        cos: ops.upload(&cos, positions, half)?,
        sin: ops.upload(&sin, positions, half)?,
    })
}
