//! The trainable part: low-rank factors of chosen linear layers, in one flat buffer with named
//! views.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::random;
use crate::target::{Target, factor_name, weight_name};

/// What to train: `y = W x + b + (alpha / rank) B A dropout(x)` on the targets of every layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rows of A and columns of B; from 1 to the hidden size.
    pub rank: usize,
    /// Numerator of the scale; positive.
    pub alpha: f64,
    /// Probability that an input of A is dropped in training; from 0 to below 1.
    pub dropout: f64,
    /// The linear layers; at least one, and each once.
    pub targets: Vec<Target>,
}

impl LoraConfig {
    /// Checks every field against the model.
    ///
    /// # Errors
    /// [`Error::Field`] with `rank`, `alpha`, `dropout` or `target_modules`.
    pub fn validate(&self, config: &Config) -> Result<()> {
        if self.rank == 0 || self.rank > config.hidden_size {
            let reason = format!(
                "{} is not from 1 to the hidden size {}",
                self.rank, config.hidden_size
            );
            return Err(Error::field("rank", reason));
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            return Err(Error::field(
                "alpha",
                format!("{} is not a positive number", self.alpha),
            ));
        }
        if !self.dropout.is_finite() || !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::field(
                "dropout",
                format!("{} is not from 0 to below 1", self.dropout),
            ));
        }
        if self.targets.is_empty() {
            return Err(Error::field("target_modules", "is empty"));
        }
        let mut sorted = self.targets.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Error::field("target_modules", "names a module twice"));
        }
        Ok(())
    }
}

/// One adapted linear layer: the ranges of its factors, and the scale of their product.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// The layer's number.
    pub layer: usize,
    /// The linear layer.
    pub target: Target,
    /// Rows of A, columns of B.
    pub rank: usize,
    /// The alpha of the scale.
    pub alpha: f64,
    /// Factor on `B A x`.
    pub scale: f64,
    /// Width of the input: columns of A.
    pub inputs: usize,
    /// Width of the output: rows of B.
    pub outputs: usize,
    /// A's range in the flat buffer: (rank, inputs).
    pub a: Range<usize>,
    /// B's range in the flat buffer: (outputs, rank).
    pub b: Range<usize>,
}

impl Module {
    /// The name of the weight that the module adapts, in a checkpoint.
    pub(crate) fn weight_name(&self) -> String {
        weight_name(self.layer, self.target)
    }
}

/// A named tensor of an adapter: a view into the flat buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// The name in PEFT's file.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Its range in the flat buffer.
    pub range: Range<usize>,
}

/// An adapter's values: one flat f32 buffer, as the optimizer needs it, and the modules in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    config: LoraConfig,
    layers: usize,
    modules: Vec<Module>,
    values: Vec<f32>,
}

impl Lora {
    /// A fresh adapter as PEFT initialises it: A uniform within ±1/√inputs (Kaiming with a = √5), B
    /// zero.
    ///
    /// Each tensor has its own random stream, keyed by seed and name.
    ///
    /// # Errors
    /// As [`LoraConfig::validate`].
    pub fn init(config: &Config, lora: &LoraConfig, seed: u64) -> Result<Self> {
        lora.validate(config)?;
        let scale = lora.alpha / lora.rank as f64;
        let mut targets = lora.targets.clone();
        targets.sort_unstable();
        let modules = (0..config.num_hidden_layers)
            .flat_map(|layer| targets.iter().map(move |&target| (layer, target)))
            .map(|(layer, target)| Shape {
                layer,
                target,
                rank: lora.rank,
                alpha: lora.alpha,
                scale,
            });
        let mut fresh = Self::zeros(
            config,
            &LoraConfig {
                targets: targets.clone(),
                ..lora.clone()
            },
            modules,
        );
        for module in fresh.modules.clone() {
            let bound = 1.0 / (module.inputs as f64).sqrt();
            let key = random::derive_name(seed, &factor_name(module.layer, module.target, 'A'));
            for (index, value) in fresh.values[module.a].iter_mut().enumerate() {
                *value = ((random::unit(key, index as u64) * 2.0 - 1.0) * bound) as f32;
            }
        }
        Ok(fresh)
    }

    pub(crate) fn zeros(
        config: &Config,
        lora: &LoraConfig,
        shapes: impl Iterator<Item = Shape>,
    ) -> Self {
        let mut end = 0;
        let modules = shapes
            .map(|shape| {
                let (inputs, outputs) = shape.target.widths(config);
                let a = end..end + shape.rank * inputs;
                let b = a.end..a.end + outputs * shape.rank;
                end = b.end;
                let Shape {
                    layer,
                    target,
                    rank,
                    alpha,
                    scale,
                } = shape;
                Module {
                    layer,
                    target,
                    rank,
                    alpha,
                    scale,
                    inputs,
                    outputs,
                    a,
                    b,
                }
            })
            .collect();
        Self {
            config: lora.clone(),
            layers: config.num_hidden_layers,
            modules,
            values: vec![0.0; end],
        }
    }

    /// Checks that the model has every module.
    pub(crate) fn check_fits(&self, config: &Config) -> Result<()> {
        let fits = |module: &Module| {
            module.layer < config.num_hidden_layers
                && (module.inputs, module.outputs) == module.target.widths(config)
        };
        match self.modules.iter().find(|module| !fits(module)) {
            None => Ok(()),
            Some(module) => Err(Error::Config(format!(
                "the adapter's {} of layer {} does not fit",
                module.target.name(),
                module.layer
            ))),
        }
    }

    /// The configuration. Patterns of an adapter that was read may set another rank or alpha for
    /// single modules.
    #[must_use]
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The adapted layers, by layer and then in [`Target::ALL`]'s order.
    #[must_use]
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Layers of the model, adapted or not.
    pub(crate) fn layers(&self) -> usize {
        self.layers
    }

    /// All values.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values, to change them.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Trainable values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether nothing is adapted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The tensors by PEFT's names, A before B, in the order of the flat buffer.
    pub fn views(&self) -> impl Iterator<Item = View> {
        self.modules.iter().flat_map(|module| {
            let view = |factor, shape, range: &Range<usize>| View {
                name: factor_name(module.layer, module.target, factor),
                shape,
                range: range.clone(),
            };
            [
                view('A', [module.rank, module.inputs], &module.a),
                view('B', [module.outputs, module.rank], &module.b),
            ]
        })
    }

    /// The flat buffer as little-endian bytes, for a checkpoint.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    /// Sets the values from the bytes of [`Lora::to_bytes`], bit for bit.
    ///
    /// # Errors
    /// The length is not this adapter's.
    pub fn set_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() != self.values.len() * 4 {
            let reason = format!("{} bytes, expected {}", bytes.len(), self.values.len() * 4);
            return Err(Error::format("adapter values", reason));
        }
        for (value, bytes) in self.values.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }
}

/// A module before its factors have ranges.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) layer: usize,
    pub(crate) target: Target,
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
    pub(crate) scale: f64,
}
