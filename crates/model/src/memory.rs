//! Estimates a run's memory before it starts. On the CPU this is process memory; on a GPU it is the
//! driver's pool, and the driver itself takes some hundred MB more.

use crate::config::Config;
use crate::device::Device;
use crate::float::Float;
use crate::gpu_limits::{GPU_LOGITS, GPU_WORKSPACE, GpuMemory};
use crate::lora::{Lora, LoraConfig};
use crate::ops::decoding::PAGE;
use crate::precision::Precision;
use crate::quant::nf4;
use crate::target::Target;

/// The memory of a training run, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The frozen base in its precision.
    pub weights: u64,
    /// The adapter's values. A GPU also holds them in the type of its products.
    pub values: u64,
    /// The gradients of the values.
    pub gradients: u64,
    /// The optimizer's two moments of each value.
    pub moments: u64,
    /// What the largest pass saves for backward, and its largest temporaries.
    pub activations: u64,
}

impl Plan {
    /// The sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.values + self.gradients + self.moments + self.activations
    }
}

/// The count of values in an adapter.
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

/// The bytes of a base in a precision on a device.
#[must_use]
pub fn weights(config: &Config, precision: Precision, device: Device) -> u64 {
    let layers = config.num_hidden_layers;
    let float = float_bytes(device);
    let mut bytes = float as u64 * config.parameters();
    for (inputs, outputs) in Target::ALL.map(|target| target.widths(config)) {
        for layer in 0..layers {
            let precision = precision.of_layer(layer, layers);
            // Add before subtracting: NF4's tables make a tiny weight larger than in full.
            bytes += linear_bytes(inputs, outputs, precision, device) as u64;
            bytes -= (float * inputs * outputs) as u64;
        }
    }
    bytes
}

/// The bytes of a page: the keys and values of [`PAGE`] tokens in all layers.
#[must_use]
pub fn page(config: &Config, device: Device) -> u64 {
    let values = 2 * config.num_hidden_layers * PAGE * config.hidden_size;
    (float_bytes(device) * values) as u64
}

/// The bytes of an adapter that decodes on a device.
#[must_use]
pub fn adapter(lora: &Lora, device: Device) -> u64 {
    let values = float_bytes(device) * lora.len();
    let beside = match device {
        // B is also held transposed.
        Device::Cpu => {
            4 * lora
                .modules()
                .iter()
                .map(|module| module.b.len())
                .sum::<usize>()
        }
        // Three words of 8 bytes for each factor.
        Device::Cuda { .. } => 3 * 8 * Target::ALL.len() * lora.layers(),
    };
    (values + beside) as u64
}

/// The bytes that adapters may have on a GPU beside a base that it holds already: a sixteenth of
/// the GPU, or a quarter of what is free if that is less.
#[must_use]
pub fn gpu_adapters(memory: GpuMemory) -> u64 {
    (memory.total / 16).min(free(memory) / 4)
}

/// The pages of keys and values for which a GPU has memory, beside a base that it holds already and
/// the bytes of all adapters.
#[must_use]
pub fn gpu_pages(config: &Config, device: Device, memory: GpuMemory, adapters: u64) -> usize {
    let free = free(memory).saturating_sub(adapters);
    usize::try_from(free / page(config, device)).unwrap_or(usize::MAX)
}

/// What keys, values and adapters may have of a GPU: a tenth of it is left to passes.
fn free(memory: GpuMemory) -> u64 {
    memory.available.saturating_sub(memory.total / 10)
}

/// The tokens of the largest pass over a window of records of these lengths.
#[must_use]
pub fn largest_pass(
    lengths: &[usize],
    micro_batch: usize,
    precision: Precision,
    device: Device,
) -> usize {
    let passes = device.passes(precision, lengths, micro_batch).into_iter();
    let tokens = passes.map(|records| lengths[records].iter().sum());
    tokens.max().unwrap_or(0)
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
    let count = trainable(config, lora);
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
    // The temporaries that exist at the same time. On the CPU: the widest product and its gradient,
    // residual rows, and a chunk of logits and its gradient. On a GPU: the gradient of the widest
    // product, residual rows, and logits that become their gradient in place.
    let (saved, temporary, loss) = match device {
        Device::Cpu => {
            let temporary = 2 * widest + 4 * hidden;
            (saved_on_cpu(config, lora), temporary, 2 * logits)
        }
        Device::Cuda { .. } => (saved_on_gpu(config, lora), widest + 4 * hidden, logits),
    };
    let log_sums = 4 * config.num_attention_heads;
    let token = config.num_hidden_layers * (float * saved + log_sums) + float * temporary;
    let mut activations = tokens * token + float * loss;
    activations += scratch(config, tokens, precision, device);
    let mut values = 4 * count;
    if let Device::Cuda { .. } = device {
        activations += GPU_WORKSPACE;
        // The factors in the type of the products.
        values += float as u64 * count;
    }
    Plan {
        weights: weights(config, precision, device),
        values,
        gradients: 4 * count,
        moments: 8 * count,
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
        // Also stored transposed, for the backward pass.
        (Precision::Fp8, Device::Cuda { .. }) => 2 * count + 4 * outputs,
        (Precision::Bf16 | Precision::Fp16, Device::Cpu) => 2 * count,
        (Precision::F32, Device::Cpu) => 4 * count,
        (Precision::F32 | Precision::Bf16 | Precision::Fp16, Device::Cuda { .. }) => {
            float_bytes(device) * count
        }
    }
}

/// Values that each token saves in each layer: the residual before attention and before the MLP,
/// queries, keys, values, attention's output, the activation's derivative, and for each adapted
/// product its input and the output of LoRA's A.
fn saved_on_cpu(config: &Config, lora: &LoraConfig) -> usize {
    let adapted = lora.targets.iter().map(|target| target.widths(config).0);
    let adapted: usize = adapted.map(|inputs| inputs + lora.rank).sum();
    6 * config.hidden_size + config.intermediate_size + adapted
}

/// [`saved_on_cpu`] on a GPU. A product's input is saved masked. Without dropout it is the matrix
/// itself, and attention's output is saved already. With a parallel residual the MLP starts from
/// the layer's input, so that one residual is saved.
fn saved_on_gpu(config: &Config, lora: &LoraConfig) -> usize {
    let hidden = config.hidden_size;
    let residuals = if config.use_parallel_residual { 1 } else { 2 };
    let adapted = lora.targets.iter().map(|&target| {
        let is_saved = target == Target::Dense && lora.dropout == 0.0;
        let input = if is_saved { 0 } else { target.widths(config).0 };
        input + lora.rank
    });
    (residuals + 4) * hidden + config.intermediate_size + adapted.sum::<usize>()
}

/// Bytes of the temporaries of a product by a weight that is not in the product's type: the weight
/// in that type, or the codes of the activations and the product in its first layout.
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
        // NF4's scales are expanded before its codes.
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

    fn rinna() -> Config {
        let config = br#"{"vocab_size": 32000, "hidden_size": 2816, "num_hidden_layers": 36,
            "num_attention_heads": 22, "intermediate_size": 11264, "max_position_embeddings": 2048}"#;
        Config::from_json(config).unwrap()
    }

    #[test]
    fn pages_fill_the_memory_beside_the_weights() {
        let config = rinna();
        let device = DeviceName::Cuda { ordinal: 0 }.device(Precision::Bf16);
        assert_eq!(page(&config, device), 12_976_128);
        assert_eq!(page(&config, Device::Cpu), 2 * 12_976_128);
        let weights = weights(&config, Precision::Bf16, device);
        let memory = |gib: u64| GpuMemory {
            available: (gib << 30) - weights,
            total: gib << 30,
        };
        // Of an H200: more than 145 sequences of the greatest length.
        assert_eq!(gpu_pages(&config, device, memory(139), 0), 9795);
        // Adapters take a sixteenth of it.
        let adapters = gpu_adapters(memory(139));
        assert_eq!(adapters, (139 << 30) / 16);
        assert_eq!(gpu_pages(&config, device, memory(139), adapters), 9076);
        let full = GpuMemory {
            available: 1 << 30,
            total: 80 << 30,
        };
        assert_eq!(gpu_pages(&config, device, full, 0), 0);
        assert_eq!(gpu_adapters(full), 0);
        // Where other programs have most of it, adapters take a quarter of the rest.
        let shared = GpuMemory {
            available: 10 << 30,
            ..full
        };
        assert_eq!(gpu_adapters(shared), 1 << 29);
    }

    #[test]
    fn an_adapter_is_counted_in_the_type_of_its_device() {
        let config = rinna();
        let lora = LoraConfig {
            rank: 8,
            alpha: 32.0,
            dropout: 0.0,
            targets: vec![Target::QueryKeyValue],
        };
        let values = trainable(&config, &lora);
        let lora = Lora::init(&config, &lora, 1).unwrap();
        let device = DeviceName::Cuda { ordinal: 0 }.device(Precision::Nf4);
        assert_eq!(adapter(&lora, device), 2 * values + 36 * 4 * 24);
        assert_eq!(
            adapter(&lora, Device::Cpu),
            4 * (values + 36 * 8 * 3 * 2816)
        );
    }

    #[test]
    fn a_plan_is_what_a_gpu_was_measured_to_take() {
        let config = rinna();
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
