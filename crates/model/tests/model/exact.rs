//! LoRA gradients at the exact shape of rinna-3.6b: each base precision against f32 over the same
//! values, both on the GPU. Takes about 40 GB of memory on the GPU and on the host.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rayon::prelude::*;
use togi_model::{Base, Batch, Config, DeviceName, Engine, Float, Lora, Precision, Target, Weight};

use crate::support;

/// Record lengths like Dolly-ja's; one record is truncated.
const LENS: [usize; 14] = [24, 512, 180, 96, 61, 333, 140, 37, 250, 15, 410, 88, 1, 129];

/// The tests run one at a time, because two do not fit into memory.
static ALONE: Mutex<()> = Mutex::new(());

fn config() -> Config {
    Config {
        vocab_size: 32_000,
        hidden_size: 2816,
        num_hidden_layers: 36,
        num_attention_heads: 22,
        intermediate_size: 11_264,
        max_position_embeddings: 2048,
        ..support::config()
    }
}

/// Returns random values, exact in 16 bits. The n-th depends only on the tensor's name and n.
fn values(name: &str, count: usize) -> Vec<f32> {
    let seed = name.bytes().fold(7, |seed: u64, byte| {
        (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let (centre, bound) = match (name.ends_with("bias"), name.contains("norm")) {
        (true, _) => (0.0, 0.01),
        (false, true) => (1.0, 0.01),
        // The standard deviation is 0.02.
        (false, false) => (0.0, 0.0346),
    };
    (0..count as u64)
        .into_par_iter()
        .map(|place| {
            // SplitMix64.
            let mut bits = seed.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let share = ((bits ^ (bits >> 31)) >> 40) as f32 / (1_u32 << 24) as f32;
            Float::Bf16.round(centre + bound * (2.0 * share - 1.0))
        })
        .collect()
}

/// Builds the base in a precision, its large matrices on all cores.
fn base(form: Precision) -> Base {
    let config = config();
    let layers = config.num_hidden_layers;
    let names = (0..layers).flat_map(|layer| {
        Target::ALL.map(|target| {
            let (inputs, outputs) = target.widths(&config);
            let path = target.path();
            let name = format!("gpt_neox.layers.{layer}.{path}.weight");
            (name, [outputs, inputs], form.of_layer(layer, layers))
        })
    });
    let names: Vec<(String, [usize; 2], Precision)> = names.collect();
    let weight = |name: &str, shape: &[usize], form| {
        let values = values(name, shape.iter().product());
        Weight::new(name, values, shape, Float::Bf16, form).unwrap()
    };
    let mut linear: HashMap<String, Weight> = names
        .into_par_iter()
        .map(|(name, shape, form)| (name.clone(), weight(&name, &shape, form)))
        .collect();
    let made = Base::made(config, form, |name, shape| {
        let found = linear.remove(name);
        Ok(found.unwrap_or_else(|| weight(name, shape, Precision::F32)))
    });
    assert!(linear.is_empty(), "all names are the base's");
    made.unwrap()
}

/// Returns the base in f32, with the values of its precision.
fn in_full(base: &Base) -> Base {
    let made = Base::made(config(), Precision::F32, |name, _| {
        Ok(Weight::Full(base.weight(name)?.dequantized()?))
    });
    made.unwrap()
}

fn gradients(base: Base, lora: &Lora, batch: &Batch) -> Vec<f32> {
    let device = DeviceName::Cuda { ordinal: 0 }.device(base.precision());
    let engine = Engine::on(Arc::new(base), device).unwrap();
    let (loss, gradients) = support::learn(&engine, lora, std::slice::from_ref(batch), None);
    eprintln!("loss {:.4} over {} targets", loss.mean(), loss.targets);
    gradients
}

/// Compares the gradients tensor by tensor.
fn least_cosine(form: Precision, bound: f64) {
    if !support::has_card() {
        return;
    }
    let _alone = ALONE.lock();
    let config = config();
    let mut lora = support::lora(&config, &Target::ALL);
    for view in lora.views().collect::<Vec<_>>() {
        if view.name.contains("lora_B") {
            let values = &mut lora.values_mut()[view.range];
            values.iter_mut().for_each(|value| *value *= 0.05);
        }
    }
    let batch = support::batch(&config, &LENS);
    let held = base(form);
    let full = in_full(&held);
    let got = gradients(held, &lora, &batch);
    let want = gradients(full, &lora, &batch);
    let cosines = lora.views().map(|view| {
        let cosine = support::cosine(&got[view.range.clone()], &want[view.range]);
        (cosine, view.name)
    });
    let mut cosines: Vec<(f64, String)> = cosines.collect();
    cosines.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (least, name) = &cosines[0];
    let median = cosines[cosines.len() / 2].0;
    let form = form.name();
    for target in Target::ALL {
        let of = cosines
            .iter()
            .find(|(_, name)| name.contains(&format!(".{}.", target.path())));
        eprintln!("{form}: {}: {of:?}", target.name());
    }
    eprintln!(
        "{form}: least cosine {least:.6} ({name}), median {median:.6}, of {}",
        cosines.len()
    );
    assert!(
        *least >= bound,
        "{form}: {least} of {name} is below {bound}"
    );
}

#[test]
fn gradients_in_bf16_point_as_in_f32() {
    least_cosine(Precision::Bf16, 0.999);
}

#[test]
fn gradients_in_fp16_point_as_in_f32() {
    least_cosine(Precision::Fp16, 0.999);
}

#[test]
fn gradients_over_fp8_point_as_over_its_values() {
    least_cosine(Precision::Fp8, 0.99);
}

#[test]
fn gradients_over_nf4_point_as_over_its_values() {
    least_cosine(Precision::Nf4, 0.99);
}

#[test]
fn gradients_over_int8_point_as_over_its_values() {
    least_cosine(Precision::Int8, 0.99);
}
