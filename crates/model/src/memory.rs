//! What a run will need in memory, before it starts.

use crate::config::Config;
use crate::lora::{LoraConfig, Target};
use crate::precision::Precision;
use crate::quant::nf4;

/// Bytes by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The base as it is held.
    pub weights: u64,
    /// Adapter values and their gradients.
    pub lora: u64,
    /// The optimizer's two moments.
    pub optimizer: u64,
    /// What a micro-batch keeps for backward, and its largest temporaries.
    pub activations: u64,
}

impl Plan {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.lora + self.optimizer + self.activations
    }
}

/// Adapter values of a configuration.
#[must_use]
pub fn trainable(config: &Config, lora: &LoraConfig) -> u64 {
    let per_layer: usize = lora
        .targets
        .iter()
        .map(|target| target.widths(config))
        .map(|(inputs, outputs)| lora.rank * (inputs + outputs))
        .sum();
    (per_layer * config.num_hidden_layers) as u64
}

/// The memory of a base that is held in a precision.
#[must_use]
pub fn weights(config: &Config, precision: Precision) -> u64 {
    let layers = config.num_hidden_layers as u64;
    let mut bytes = 4 * config.parameters();
    for (inputs, outputs) in Target::ALL.map(|target| target.widths(config)) {
        let count = inputs * outputs;
        let packed = match precision {
            Precision::Nf4 => nf4::bytes(count),
            Precision::Int8 | Precision::Fp8 => count + 4 * outputs,
            Precision::Bf16 | Precision::Fp16 => 2 * count,
            Precision::F32 => 4 * count,
        };
        // In this order: NF4's tables have one size, so that a tiny weight is smaller in full.
        bytes += layers * packed as u64;
        bytes -= layers * 4 * count as u64;
    }
    bytes
}

/// Bytes that come and go around a product by a quantized weight: its dequantized form, or the codes of the activations and the
/// product before it lies row by row.
fn scratch(config: &Config, tokens: usize, precision: Precision) -> usize {
    let of = |(inputs, outputs): (usize, usize)| match precision {
        Precision::Bf16 | Precision::Fp16 | Precision::Nf4 | Precision::Fp8 => 4 * inputs * outputs,
        Precision::Int8 => (4 * inputs * outputs).max(tokens * (5 * inputs + 4 * outputs + 4)),
        Precision::F32 => 0,
    };
    let sizes = Target::ALL.map(|target| of(target.widths(config)));
    sizes.into_iter().max().unwrap_or(0)
}

/// The memory of training with micro-batches of at most `tokens` tokens.
#[must_use]
pub fn plan(config: &Config, lora: &LoraConfig, tokens: usize, precision: Precision) -> Plan {
    let (hidden, inner, layers) = (
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
    );
    // Kept for each token and layer: the residual before attention and before the MLP, queries, keys, values, the
    // attention's output and log sums, and the activation's slope.
    let mut kept = 6 * hidden + config.num_attention_heads + inner;
    for target in &lora.targets {
        kept += target.widths(config).0 + lora.rank;
    }
    // Alive at once outside of that: the widest product with its gradient, three residual rows, and a chunk of logits.
    let passing = 2 * (3 * hidden).max(inner) + 4 * hidden;
    let logits = <crate::cpu::Cpu as crate::ops::Ops>::LOGITS_AT_ONCE
        .min(tokens * config.vocab_size)
        .max(config.vocab_size);
    let values = trainable(config, lora);
    Plan {
        weights: weights(config, precision),
        lora: 8 * values,
        optimizer: 8 * values,
        activations: (4 * (tokens * (kept * layers + passing) + 2 * logits)
            + scratch(config, tokens, precision)) as u64,
    }
}
