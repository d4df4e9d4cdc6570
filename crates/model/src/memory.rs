//! What a run will need in memory, before it starts: on the processor of the process, on a card of
//! what the process lends from it, beside which the driver takes some hundred megabytes for itself.

use crate::config::Config;
use crate::device::Device;
use crate::float::Float;
use crate::gpu_limits::{GPU_LOGITS, GPU_WORKSPACE};
use crate::lora::LoraConfig;
use crate::precision::Precision;
use crate::quant::nf4;
use crate::target::Target;

/// Bytes by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The base as it is held.
    pub weights: u64,
    /// Adapter values and their gradients.
    pub lora: u64,
    /// The optimizer's two moments.
    pub optimizer: u64,
    /// What a pass keeps for backward, and its largest temporaries.
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

/// The memory of a base that is held in a precision on a device.
#[must_use]
pub fn weights(config: &Config, precision: Precision, device: Device) -> u64 {
    let layers = config.num_hidden_layers;
    let float = float_bytes(device);
    let mut bytes = float as u64 * config.parameters();
    for (inputs, outputs) in Target::ALL.map(|target| target.widths(config)) {
        for layer in 0..layers {
            let precision = precision.of_layer(layer, layers);
            // In this order: NF4's tables have one size, so that a tiny weight is smaller in full.
            bytes += linear_bytes(inputs, outputs, precision, device) as u64;
            bytes -= (float * inputs * outputs) as u64;
        }
    }
    bytes
}

/// The memory of training with passes of at most `tokens` tokens.
#[must_use]
pub fn plan(
    config: &Config,
    lora: &LoraConfig,
    tokens: usize,
    precision: Precision,
    device: Device,
) -> Plan {
    let values = trainable(config, lora);
    let logits = match device {
        Device::Cpu => <crate::cpu::Cpu as crate::ops::training::Learn>::LOGITS_AT_ONCE,
        Device::Cuda { .. } => GPU_LOGITS,
    };
    let logits = logits
        .min(tokens * config.vocab_size)
        .max(config.vocab_size);
    let float = float_bytes(device);
    let hidden = config.hidden_size;
    let widest = (3 * hidden).max(config.intermediate_size);
    // Alive at once outside of what is kept: on the processor the widest product with its gradient,
    // three residual rows, and a chunk of logits; on a card the joint product's gradient with four
    // residual rows, and logits that become their gradient in place.
    let (kept, passing, around) = match device {
        Device::Cpu => {
            let passing = 2 * widest + 4 * hidden;
            (kept_on_cpu(config, lora), passing, 2 * logits)
        }
        Device::Cuda { .. } => (kept_on_card(config, lora), widest + 4 * hidden, logits),
    };
    let log_sums = 4 * config.num_attention_heads;
    let token = config.num_hidden_layers * (float * kept + log_sums) + float * passing;
    let mut activations = tokens * token + float * around;
    activations += scratch(config, tokens, precision, device);
    let mut of_lora = 8 * values;
    if let Device::Cuda { .. } = device {
        activations += GPU_WORKSPACE;
        // The factors in the type of the products.
        of_lora += float as u64 * values;
    }
    Plan {
        weights: weights(config, precision, device),
        lora: of_lora,
        optimizer: 8 * values,
        activations: activations as u64,
    }
}

/// Bytes of an activation, and of a weight that is not of a linear layer.
fn float_bytes(device: Device) -> usize {
    match device {
        Device::Cuda {
            float: Float::Bf16 | Float::Fp16,
            ..
        } => 2,
        Device::Cpu
        | Device::Cuda {
            float: Float::F32, ..
        } => 4,
    }
}

/// Bytes of a linear layer's weight.
fn linear_bytes(inputs: usize, outputs: usize, precision: Precision, device: Device) -> usize {
    let count = inputs * outputs;
    match (precision, device) {
        (Precision::Nf4, _) => nf4::bytes(count),
        (Precision::Int8, _) | (Precision::Fp8, Device::Cpu) => count + 4 * outputs,
        // Also turned round, for the way back.
        (Precision::Fp8, Device::Cuda { .. }) => 2 * count + 4 * outputs,
        (Precision::Bf16 | Precision::Fp16, Device::Cpu) => 2 * count,
        (Precision::F32, Device::Cpu) => 4 * count,
        (Precision::F32 | Precision::Bf16 | Precision::Fp16, Device::Cuda { .. }) => {
            float_bytes(device) * count
        }
    }
}

/// Values kept for each token and layer: the residual before attention and before the MLP, queries,
/// keys, values, the attention's output, the activation's slope, and of each adapted product the
/// input and what is left of it.
fn kept_on_cpu(config: &Config, lora: &LoraConfig) -> usize {
    let adapted = lora.targets.iter().map(|target| target.widths(config).0);
    let adapted: usize = adapted.map(|inputs| inputs + lora.rank).sum();
    6 * config.hidden_size + config.intermediate_size + adapted
}

/// The same on a card, where a product's input is kept masked; without dropout it is the matrix
/// itself, which for the one after attention is kept already. In the parallel arrangement the MLP
/// starts from the layer's input.
fn kept_on_card(config: &Config, lora: &LoraConfig) -> usize {
    let hidden = config.hidden_size;
    let residuals = if config.use_parallel_residual { 1 } else { 2 };
    let adapted = lora.targets.iter().map(|&target| {
        let is_kept = target == Target::Dense && lora.dropout == 0.0;
        let input = if is_kept { 0 } else { target.widths(config).0 };
        input + lora.rank
    });
    (residuals + 4) * hidden + config.intermediate_size + adapted.sum::<usize>()
}

/// Bytes that come and go around a product by a weight that is not in the type of the product: its
/// widened form, or the codes of the activations and the product before it lies row by row.
fn scratch(config: &Config, tokens: usize, precision: Precision, device: Device) -> usize {
    let float = float_bytes(device);
    let of = |(inputs, outputs): (usize, usize)| match (precision, device) {
        (Precision::F32, _) => 0,
        (Precision::Int8, Device::Cpu) => {
            (4 * inputs * outputs).max(tokens * (5 * inputs + 4 * outputs + 4))
        }
        (_, Device::Cpu) => 4 * inputs * outputs,
        (Precision::Bf16 | Precision::Fp16, Device::Cuda { .. }) => 0,
        (Precision::Fp8, Device::Cuda { .. }) => tokens * (inputs.max(outputs) + 4),
        // NF4's scales are widened before its codes are.
        (Precision::Nf4, Device::Cuda { .. }) => {
            inputs * outputs * float + inputs * outputs / nf4::BLOCK * 4
        }
        (Precision::Int8, Device::Cuda { .. }) => inputs * outputs * float,
    };
    let sizes = Target::ALL.map(|target| of(target.widths(config)));
    sizes.into_iter().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceName;

    #[test]
    fn a_plan_is_what_a_card_was_measured_to_lend() {
        let config = br#"{"vocab_size": 32000, "hidden_size": 2816, "num_hidden_layers": 36,
            "num_attention_heads": 22, "intermediate_size": 11264, "max_position_embeddings": 2048}"#;
        let config = Config::from_json(config).unwrap();
        let lora = LoraConfig {
            rank: 8,
            alpha: 32.0,
            dropout: 0.1,
            targets: vec![Target::QueryKeyValue],
        };
        // On an H200, 32 records in one pass, of 6,900 tokens at most.
        for (precision, measured) in [(Precision::Bf16, 20.9), (Precision::Nf4, 16.1)] {
            let device = DeviceName::Cuda { ordinal: 0 }.device(precision);
            let plan = plan(&config, &lora, 6900, precision, device);
            let planned = plan.total() as f64 / f64::from(1 << 30);
            let off = planned / measured - 1.0;
            assert!(
                off.abs() < 0.1,
                "{precision:?}: {planned:.2} GiB, {off:.3} off"
            );
        }
    }
}
