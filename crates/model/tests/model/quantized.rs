//! Properties of quantized matrices and networks: error bounds, incomplete blocks, and agreement
//! with the network in f32.

use std::sync::Arc;

use togi_model::quant::{Fp8, Int8, Nested, Nf4, nf4, scales};
use togi_model::{Base, Config, Device, Engine, Float, Precision, Target, Weight, base, memory};

use crate::support::{self, On, assert_close, on_each_device};

on_each_device!(a_network_equals_the_full_network_of_its_values);

/// All precisions except f32.
const PACKED: [Precision; 5] = [
    Precision::Bf16,
    Precision::Fp16,
    Precision::Int8,
    Precision::Nf4,
    Precision::Fp8,
];

fn random(count: usize, bound: f32) -> Vec<f32> {
    support::uniform(&mut support::rng(count as u64), count, bound)
}

/// Returns a matrix's values in f32.
fn held(base: &Base, name: &str) -> Vec<f32> {
    let tensor = base.weight(name).unwrap().dequantized().unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn load(config: &Config, precision: Precision) -> Arc<Base> {
    Arc::new(Base::load_as(support::folder(config).path(), precision).unwrap())
}

/// Returns a base in f32 with the values of the quantized one.
fn in_full(quantized: &Base) -> Arc<Base> {
    let dir = tempfile::tempdir().unwrap();
    let config = quantized.config();
    base::write(dir.path(), config, |name, _| held(quantized, name)).unwrap();
    Arc::new(Base::load(dir.path()).unwrap())
}

#[test]
fn nf4_levels_come_back_and_all_else_is_half_a_step_away() {
    // A block of the levels themselves, at a scale of 0.5.
    let levels: Vec<f32> = (0..64).map(|i| 0.5 * nf4::LEVELS[i % 16]).collect();
    let (packed, scales) = nf4::pack(&levels);
    assert_eq!(scales, [0.5]);
    assert_eq!(
        packed[..8],
        [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]
    );
    assert_eq!(Nf4::quantize(&levels, 8, Float::F32).dequantized(), levels);

    let widest = nf4::LEVELS.windows(2).map(|pair| pair[1] - pair[0]);
    let half_step = widest.fold(0.0, f32::max) / 2.0;
    for count in [1, 2, 63, 64, 65, 64 * 300 + 7] {
        let values = random(count, 0.4);
        let quantized = Nf4::quantize(&values, count, Float::F32);
        assert_eq!(quantized.packed().len(), count.div_ceil(2));
        assert_eq!(quantized.scales().len(), count.div_ceil(64));
        for (block, (want, got)) in values
            .chunks(64)
            .zip(quantized.dequantized().chunks(64))
            .enumerate()
        {
            let absmax = want.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
            let lost = (quantized.scales().get(block) - absmax).abs();
            for (want, got) in want.iter().zip(got) {
                let bound = half_step * absmax + lost + 1e-6;
                assert!((want - got).abs() <= bound, "{count}: {want} became {got}");
            }
        }
    }
}

#[test]
fn nf4_values_are_rounded_to_the_type_that_was_quantized_for_the_backward_alone() {
    for float in [Float::Fp16, Float::Bf16] {
        let values: Vec<f32> = random(130, 1.0)
            .into_iter()
            .map(|v| float.round(v))
            .collect();
        let quantized = Nf4::quantize(&values, 13, float);
        let mut exact = vec![0.0; 130];
        quantized.expand(0, &mut exact, Float::F32);
        let rounded: Vec<f32> = exact.iter().map(|&value| float.round(value)).collect();
        assert_ne!(exact, rounded);
        assert_eq!(quantized.dequantized(), rounded);
        // A part equals the same range of the whole.
        let mut part = vec![0.0; 70];
        quantized.expand(33, &mut part, Float::F32);
        assert_eq!(part, exact[33..103]);
    }
}

#[test]
fn nested_scales_are_close_and_the_map_is_even() {
    let map = scales::dynamic_map();
    assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
    for code in 0..127 {
        assert_eq!(map[code], -map[254 - code]);
    }
    assert_eq!((map[127], map[255]), (0.0, 1.0));
    let given: Vec<f32> = random(600, 0.2).into_iter().map(|v| 1.0 + v).collect();
    let nested = Nested::quantize(&given);
    assert_eq!((nested.codes().len(), nested.absmax().len()), (600, 3));
    assert!((nested.offset() - 1.0).abs() < 0.05);
    for (block, &scale) in given.iter().enumerate() {
        let back = map[usize::from(nested.codes()[block])] * nested.absmax()[block / 256];
        // Half of the map's largest step, which is 0.0141.
        let bound = 0.0071 * nested.absmax()[block / 256] + 1e-6;
        assert!((back + nested.offset() - scale).abs() <= bound, "{scale}");
    }
}

#[test]
fn parts_that_do_not_fit_a_shape_are_refused_by_name() {
    let scales = || Nf4::quantize(&[1.0; 70], 7, Float::F32).scales().clone();
    let of = |packed: usize, shape| Nf4::from_parts(shape, Float::F32, vec![0; packed], scales());
    assert!(of(35, [10, 7]).is_ok());
    let says = |error: Option<togi_model::Error>, what: &str| {
        let text = error.unwrap().to_string();
        assert!(text.contains(what), "{text}");
    };
    says(of(34, [10, 7]).err(), "packed codes");
    says(of(65, [10, 13]).err(), "absmax");
    says(
        Nested::from_parts(vec![0; 257], vec![0.0], vec![0.0; 256], 0.0).err(),
        "nested_absmax",
    );
    says(
        Nested::from_parts(vec![0; 256], vec![0.0], vec![0.0; 255], 0.0).err(),
        "nested_quant_map",
    );
    says(
        Int8::from_parts([2, 3], vec![0; 5], vec![0.0; 2]).err(),
        "codes",
    );
    says(
        Int8::from_parts([2, 3], vec![0; 6], vec![0.0; 3]).err(),
        "SCB",
    );
}

#[test]
fn int8_rows_come_back_within_half_a_code() {
    let mut values = random(5 * 33, 0.3);
    values[33..66].fill(0.0);
    let quantized = Int8::quantize(&values, 33);
    let back = quantized.dequantized();
    for (row, (want, got)) in values.chunks(33).zip(back.chunks(33)).enumerate() {
        let largest = quantized.absmax()[row];
        for (want, got) in want.iter().zip(got) {
            // Half a code, plus fp16's error.
            let bound = largest * (0.5 / 127.0 + 1e-3);
            assert!((want - got).abs() <= bound, "{want} became {got}");
        }
    }
    assert_eq!(back[33..66], [0.0; 33]);
}

#[test]
fn fp8_rows_come_back_within_half_a_step() {
    let mut values = random(5 * 33, 0.3);
    values[33..66].fill(0.0);
    values[70] = 40.0;
    let quantized = Fp8::quantize(&values, 33);
    let back = quantized.dequantized();
    for (row, (want, got)) in values.chunks(33).zip(back.chunks(33)).enumerate() {
        for (want, got) in want.iter().zip(got) {
            // The fraction has three bits; below 2^-6 the step is 2^-9 of the row's scale.
            let bound = (want.abs() / 16.0).max(quantized.scales()[row] / 1024.0) * 1.000_01;
            assert!((want - got).abs() <= bound, "{want} became {got}");
        }
    }
    assert_eq!(back[33..66], [0.0; 33]);
    assert_eq!(back[70], 40.0, "the largest of a row is kept");
}

#[test]
fn halves_are_the_nearest_values_of_their_type() {
    let config = support::config();
    let plain = load(&config, Precision::F32);
    for (precision, float) in [
        (Precision::Bf16, Float::Bf16),
        (Precision::Fp16, Float::Fp16),
    ] {
        let base = load(&config, precision);
        let name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight";
        let nearest: Vec<f32> = held(&plain, name).iter().map(|&v| float.round(v)).collect();
        assert_eq!(held(&base, name), nearest);
        assert_eq!(base.weight(name).unwrap().bytes(), 2 * nearest.len());
    }
}

#[test]
fn a_value_beyond_a_type_is_refused_by_name() {
    let config = support::config();
    let dir = tempfile::tempdir().unwrap();
    let far = "gpt_neox.layers.1.attention.dense.weight";
    base::write(dir.path(), &config, |name, count| {
        let mut values = vec![0.25; count];
        values[count - 1] = if name == far { 70_000.0 } else { 1.0 };
        values
    })
    .unwrap();
    for precision in [Precision::Fp16, Precision::Int8] {
        let text = Base::load_as(dir.path(), precision).err().unwrap();
        let text = text.to_string();
        assert!(text.contains(far) && text.contains("fp16"), "{text}");
    }
    Base::load_as(dir.path(), Precision::Bf16).unwrap();
    Base::load_as(dir.path(), Precision::Fp8).unwrap();
}

#[test]
fn columns_with_a_six_are_multiplied_in_floats() {
    let (inputs, outputs) = (70, 9);
    let weight = Int8::quantize(&random(inputs * outputs, 0.2), inputs);
    let values = weight.dequantized();
    let exact = |x: &[f32]| -> Vec<f32> {
        x.chunks(inputs)
            .flat_map(|x| {
                let dot = |w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum();
                values.chunks(inputs).map(dot).collect::<Vec<f32>>()
            })
            .collect()
    };
    // Only one column is nonzero. As an outlier it is exact; just below the threshold it is
    // quantized.
    let column = |large: f32| {
        let mut x = vec![0.0; 12 * inputs];
        x[7] = large;
        x[inputs + 7] = 0.123;
        x
    };
    let outlier = column(6.0);
    assert_close(&weight.linear(&outlier, None), &exact(&outlier), 1e-6, "6");
    let below = column(5.99);
    let codes = [5.9882812_f32, 0.12298584].map(|largest| largest / 127.0 * 127.0);
    let expected: Vec<f32> = exact(&[&[0.0; 7], &codes[..1], &[0.0; 62]].concat());
    let got = weight.linear(&below, None);
    assert_close(&got[..outputs], &expected, 1e-3, "5.99");

    // An outlier must not count in its row's scale, or 100 would set the scale of a row of ones.
    let mut x = random(12 * inputs, 1.0);
    x[3 * inputs + 20] = 100.0;
    let full = exact(&x);
    assert_close(&weight.linear(&x, None), &full, 1e-2, "with an outlier");
    let bias = random(outputs, 1.0);
    let with_bias = weight.linear(&x, Some(&bias));
    for (row, plain) in with_bias
        .chunks(outputs)
        .zip(weight.linear(&x, None).chunks(outputs))
    {
        let sum: Vec<f32> = plain.iter().zip(&bias).map(|(y, b)| y + b).collect();
        assert_close(row, &sum, 2e-3, "bias");
    }
}

#[test]
fn only_the_linear_weights_of_layers_are_quantized() {
    let config = support::deep();
    for precision in PACKED {
        let base = load(&config, precision);
        assert_eq!(base.precision(), precision);
        let plain = load(&config, Precision::F32);
        assert_eq!(base.digest(), plain.digest());
        let mut bytes = 0;
        for layer in 0..3 {
            for target in Target::ALL {
                let name = format!("gpt_neox.layers.{layer}.{}", target.path());
                let weight = base.weight(&format!("{name}.weight")).unwrap();
                assert!(base.tensor(&format!("{name}.weight")).is_none());
                bytes += weight.bytes();
                assert!(!matches!(weight, Weight::Full(_)), "{name}");
                assert!(base.tensor(&format!("{name}.bias")).is_some());
            }
        }
        for name in ["gpt_neox.embed_in.weight", "embed_out.weight"] {
            assert_eq!(held(&base, name), held(&plain, name));
        }
        let linear: usize = Target::ALL
            .map(|target| target.widths(&config))
            .iter()
            .map(|(inputs, outputs)| 3 * inputs * outputs)
            .sum();
        let rest = 4 * (config.parameters() - linear as u64);
        let planned = memory::weights(&config, precision, Device::Cpu);
        assert_eq!(planned, rest + bytes as u64, "{precision:?}");
    }
}

#[test]
fn fp8_holds_the_first_ninth_of_the_layers_and_the_last_as_bf16() {
    for (layers, first) in [(3, 1), (4, 1), (9, 1), (36, 4)] {
        for layer in 0..layers {
            let halves = layer < first || layer == layers - 1;
            let expected = if halves {
                Precision::Bf16
            } else {
                Precision::Fp8
            };
            assert_eq!(Precision::Fp8.of_layer(layer, layers), expected);
            assert_eq!(Precision::Nf4.of_layer(layer, layers), Precision::Nf4);
        }
    }
    let base = load(&support::deep(), Precision::Fp8);
    let forms = [0, 1, 2].map(|layer| {
        let name = format!("gpt_neox.layers.{layer}.mlp.dense_h_to_4h.weight");
        base.weight(&name).unwrap().clone()
    });
    let [Weight::Half(first), Weight::Fp8(_), Weight::Half(last)] = forms else {
        panic!("not as bf16, codes and bf16");
    };
    assert_eq!([first.float(), last.float()], [Float::Bf16; 2]);
}

#[test]
fn the_plan_has_room_for_one_dequantized_weight() {
    let config = support::config();
    let lora = support::lora_config(&[Target::Dense]);
    let plan = |precision| memory::plan(&config, &lora, 10, precision, Device::Cpu);
    let largest = Target::ALL
        .map(|target| target.widths(&config))
        .map(|(inputs, outputs)| 4 * inputs * outputs)
        .into_iter()
        .max();
    let [full, nf4] = [Precision::F32, Precision::Nf4].map(plan);
    let scratch = nf4.activations - full.activations;
    assert_eq!(scratch, largest.unwrap() as u64);
}

#[test]
fn a_base_of_3_6_billion_fits_where_its_precision_says() {
    let config = Config {
        vocab_size: 32_000,
        hidden_size: 2816,
        num_hidden_layers: 36,
        num_attention_heads: 22,
        intermediate_size: 11_264,
        ..support::config()
    };
    let gigabytes = |precision| memory::weights(&config, precision, Device::Cpu) as f64 / 1e9;
    for (precision, expected) in [
        (Precision::F32, 14.43),
        (Precision::Bf16, 7.58),
        (Precision::Fp16, 7.58),
        (Precision::Fp8, 4.63),
        (Precision::Int8, 4.15),
        (Precision::Nf4, 2.49),
    ] {
        let planned = gigabytes(precision);
        assert!((planned - expected).abs() < 0.01, "{precision:?} {planned}");
    }
}

fn a_network_equals_the_full_network_of_its_values(on: &On) {
    let kinds = PACKED.into_iter().filter(|&p| p != Precision::Int8);
    for (precision, use_parallel_residual) in kinds.flat_map(|p| [(p, false), (p, true)]) {
        let config = Config {
            use_parallel_residual,
            ..support::deep()
        };
        let quantized = load(&config, precision);
        let engines = [quantized.clone(), in_full(&quantized)].map(|base| on.over(base));
        let lora = support::lora(&config, &Target::ALL);
        // More rows than the limit for dot products, then fewer.
        for lens in [&[9, 14][..], &[5]] {
            let batch = support::batch(&config, lens);
            let [ours, full] = engines.each_ref().map(|engine| {
                let (loss, grads) =
                    support::learn(engine, &lora, std::slice::from_ref(&batch), None);
                (loss.sum, grads)
            });
            on.assert_same(ours.0, full.0, "loss");
            on.assert_same_gradients(&ours.1, &full.1);
        }
        let ids: Vec<u32> = (0..12).collect();
        let [ours, full] = engines
            .each_ref()
            .map(|engine| engine.decode(&mut engine.cache(), &ids, None).unwrap());
        assert_close(&ours, &full, on.tolerance, "logits");
        let mut cache = engines[0].cache();
        let steps = ids
            .iter()
            .map(|&id| engines[0].decode(&mut cache, &[id], None).unwrap());
        assert_close(&steps.last().unwrap(), &full, on.tolerance, "steps");
    }
}

#[test]
fn an_int8_network_is_near_the_full_network_of_its_values() {
    let config = support::config();
    let quantized = load(&config, Precision::Int8);
    let engines = [quantized.clone(), in_full(&quantized)].map(|base| Engine::new(base).unwrap());
    let lora = support::lora(&config, &Target::ALL);
    let batch = support::batch(&config, &[9, 14]);
    let [ours, again, full] = [0, 0, 1].map(|engine| {
        let (loss, grads) =
            support::learn(&engines[engine], &lora, std::slice::from_ref(&batch), None);
        (loss.sum, grads)
    });
    assert_eq!(ours, again);
    assert_ne!(ours.1, full.1, "activations are quantized as well");
    assert!((ours.0 / full.0 - 1.0).abs() < 1e-2);
    assert_close(&ours.1, &full.1, 5e-2, "gradients");
}
