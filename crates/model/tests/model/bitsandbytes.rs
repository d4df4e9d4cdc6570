//! Quantized bases against bitsandbytes 0.50.2 on CUDA, over inputs in f32, fp16 and bf16. The
//! numbers come from tests/reference/quantized.py.

use std::path::PathBuf;
use std::sync::Arc;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use togi_model::quant::{Int8, Nested, Nf4, Scales, nf4};
use togi_model::{Base, Batch, Config, Engine, Float, Lora, LoraConfig, Precision, Target, Weight};

use crate::support::assert_close;

const FLOATS: [(&str, Float); 3] = [
    ("f32", Float::F32),
    ("fp16", Float::Fp16),
    ("bf16", Float::Bf16),
];

/// The compute types of a 4-bit layer, with the tolerance of a layer in f32.
const COMPUTE: [(&str, f64); 2] = [("f32", 1e-4), ("bf16", 2e-2)];

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/reference/fixtures")
        .join(name)
}

struct Fixture(Vec<u8>);

impl Fixture {
    fn open(name: &str) -> Self {
        Self(std::fs::read(path(&format!("quantized-{name}.safetensors"))).unwrap())
    }

    fn names(&self) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let mut names: Vec<_> = file.names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap().shape().to_vec()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap().data().to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|_| panic!("no {name}"));
        let bytes = tensor.data();
        let pairs = bytes.as_chunks::<2>().0.iter();
        match tensor.dtype() {
            Dtype::F32 => {
                let values = bytes.as_chunks::<4>().0.iter();
                values.map(|&b| f32::from_le_bytes(b)).collect()
            }
            Dtype::F16 => pairs
                .map(|&b| half::f16::from_le_bytes(b).to_f32())
                .collect(),
            Dtype::BF16 => pairs
                .map(|&b| half::bf16::from_le_bytes(b).to_f32())
                .collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    /// Returns the quantizer's inputs: values rounded to a float type.
    fn rounded(&self, name: &str, float: Float) -> Vec<f32> {
        let values = self.floats(name);
        values.into_iter().map(|value| float.round(value)).collect()
    }
}

/// Returns `x wᵀ + bias`, computed in f64, for a weight with `inputs` columns.
fn product(x: &[f32], w: &[f32], bias: Option<&[f32]>, inputs: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for x in x.chunks(inputs) {
        for (output, w) in w.chunks(inputs).enumerate() {
            let pairs = x.iter().zip(w);
            let sum: f64 = pairs.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            let bias = bias.map_or(0.0, |bias| f64::from(bias[output]));
            out.push((sum + bias) as f32);
        }
    }
    out
}

fn transposed(w: &[f32], inputs: usize) -> Vec<f32> {
    (0..inputs)
        .flat_map(|input| w[input..].iter().step_by(inputs).copied())
        .collect()
}

#[test]
fn nf4_has_the_same_bytes_scales_and_values() {
    let fixture = Fixture::open("nf4");
    for shape in ["large", "tail", "outlier", "zero", "constant"] {
        let [rows, columns] = fixture.shape(&format!("{shape}.values"))[..] else {
            panic!("{shape} is no matrix");
        };
        for (name, float) in FLOATS {
            let case = format!("{shape}.{name}");
            let part = |part: &str| format!("{case}.{part}");
            let values = fixture.rounded(&format!("{shape}.values"), float);
            let (packed, absmax) = nf4::pack(&values);
            assert_eq!(packed, fixture.bytes(&part("packed")), "{case}");
            assert_eq!(absmax, fixture.floats(&part("absmax")), "{case}");

            let ours = Nested::quantize(&absmax);
            let offset = fixture.floats(&part("offset"))[0];
            let off = (ours.offset() - offset).abs() / offset;
            assert!(off <= 1e-6, "{case}: offset off by {off:e}");
            let nested = Nested::around(&absmax, offset);
            let codes = fixture.bytes(&part("nested_codes"));
            assert_eq!(nested.codes(), codes, "{case}");
            let largest = fixture.floats(&part("nested_absmax"));
            assert_eq!(nested.absmax(), largest, "{case}");
            let map = fixture.floats(&part("nested_quant_map"));
            assert_eq!(nested.map().as_slice(), map, "{case}");

            let scales = Nested::from_parts(codes, largest, map, offset).unwrap();
            let recorded =
                Nf4::from_parts([rows, columns], float, packed, Scales::Nested(scales)).unwrap();
            let expected = fixture.floats(&part("dequantized"));
            assert_eq!(recorded.dequantized(), expected, "{case}");
            let whole = Nf4::quantize(&values, columns, float);
            assert_close(&whole.dequantized(), &expected, 1e-4, &case);
        }
    }
}

#[test]
fn a_4bit_layer_gives_the_same_output_and_gradient() {
    let fixture = Fixture::open("linear4bit");
    for shape in ["10x128x24", "3x128x24", "1x128x24", "10x40x24"] {
        let of_shape = |part: &str| format!("{shape}.{part}");
        let inputs = fixture.shape(&of_shape("weight"))[1];
        let (x, dy) = (
            fixture.floats(&of_shape("x")),
            fixture.floats(&of_shape("dy")),
        );
        let bias = fixture.floats(&of_shape("bias"));
        for (name, float) in FLOATS {
            let values = fixture.rounded(&of_shape("weight"), float);
            let weight = Nf4::quantize(&values, inputs, float);
            let mut forward = vec![0.0; values.len()];
            weight.expand(0, &mut forward, Float::F32);
            let y = product(&x, &forward, Some(&bias), inputs);
            let back = transposed(&weight.dequantized(), inputs);
            let dx = product(&dy, &back, None, values.len() / inputs);
            for (compute, tolerance) in COMPUTE {
                let case = format!("{shape}.{name}.{compute}");
                for (part, ours) in [("y", &y), ("y_without_gradient", &y), ("dx", &dx)] {
                    let part = format!("{case}.{part}");
                    assert_close(ours, &fixture.floats(&part), tolerance, &part);
                }
            }
        }
    }
}

/// Returns the largest and the mean difference.
fn errors(got: &[f32], want: &[f32]) -> (f64, f64) {
    assert_eq!(got.len(), want.len());
    let differences = got.iter().zip(want).map(|(a, b)| f64::from(a - b).abs());
    let (most, sum) = differences.fold((0.0, 0.0), |(most, sum): (f64, f64), d| {
        (most.max(d), sum + d)
    });
    (most, sum / got.len() as f64)
}

/// Asserts that our errors against the full result are at most 1.1 times theirs.
fn assert_no_worse(ours: &[f32], theirs: &[f32], full: &[f32], case: &str) {
    let ((most, mean), (their_most, their_mean)) = (errors(ours, full), errors(theirs, full));
    assert!(
        most <= 1.1 * their_most && mean <= 1.1 * their_mean,
        "{case}: ours are {most:e} at most and {mean:e} on average, theirs {their_most:e} and {their_mean:e}"
    );
}

#[test]
fn an_8bit_layer_gives_the_same_output_and_is_no_further_from_the_full_one() {
    let fixture = Fixture::open("linear8bit");
    for shape in ["12x128x48", "1x128x48", "12x72x40"] {
        let of_shape = |part: &str| format!("{shape}.{part}");
        let [outputs, inputs] = fixture.shape(&of_shape("weight"))[..] else {
            panic!("{shape} is no matrix");
        };
        let weight = Int8::quantize(&fixture.floats(&of_shape("weight")), inputs);
        let codes: Vec<u8> = weight.codes().iter().map(|c| c.cast_unsigned()).collect();
        assert_eq!(codes, fixture.bytes(&of_shape("codes")), "{shape}");
        assert_eq!(weight.absmax(), fixture.floats(&of_shape("row_absmax")));
        let bias = fixture.floats(&of_shape("bias"));
        let back = transposed(&weight.dequantized(), inputs);
        let dx = product(&fixture.floats(&of_shape("dy")), &back, None, outputs);
        for kind in ["plain", "outliers"] {
            let x = fixture.floats(&of_shape(&format!("{kind}.x")));
            let full = fixture.floats(&of_shape(&format!("{kind}.full")));
            let y = weight.linear(&x, Some(&bias));
            // As in decoding, where each row has its own outlier columns. bitsandbytes takes those
            // of all rows, so that more of their values are multiplied in floats.
            let alone = |row| weight.linear(row, Some(&bias));
            let by_rows: Vec<f32> = x.chunks(inputs).flat_map(alone).collect();
            for (name, tolerance) in [("f32", 1e-5), ("fp16", 2e-3)] {
                let case = format!("{shape}.{kind}.{name}");
                let theirs = fixture.floats(&format!("{case}.y"));
                assert_no_worse(&y, &theirs, &full, &case);
                assert_no_worse(&by_rows, &theirs, &full, &case);
                assert_close(&y, &theirs, tolerance, &case);
                let their_dx = fixture.floats(&format!("{case}.dx"));
                assert_close(&dx, &their_dx, tolerance, &case);
            }
        }
    }
}

fn base(folder: &str, precision: Precision) -> Arc<Base> {
    Arc::new(Base::load_as(&path(folder), precision).unwrap())
}

fn ids(fixture: &Fixture) -> Vec<u32> {
    let bytes = fixture.bytes("ids");
    let values = bytes.as_chunks::<8>().0.iter();
    values
        .map(|&b| u32::try_from(i64::from_le_bytes(b)).unwrap())
        .collect()
}

/// Returns the logits after the last id, from one pass over all ids.
fn last_logits(base: &Arc<Base>, ids: &[u32]) -> Vec<f32> {
    let engine = Engine::new(base.clone()).unwrap();
    engine.decode(&mut engine.cache(), ids, None).unwrap()
}

fn last_row(fixture: &Fixture, name: &str, vocabulary: usize) -> Vec<f32> {
    let logits = fixture.floats(name);
    logits[logits.len() - vocabulary..].to_vec()
}

#[test]
fn a_4bit_network_gives_the_same_logits_quantized_here_or_there() {
    let fixture = Fixture::open("network");
    let ids = ids(&fixture);
    for folder in ["quantized-base", "quantized-4bit"] {
        let base = base(folder, Precision::Nf4);
        let vocabulary = base.config().vocab_size;
        let ours = last_logits(&base, &ids);
        let (most, _) = errors(&ours, &last_row(&fixture, "logits.4bit", vocabulary));
        assert!(most <= 1e-4, "{folder}: off by {most:e}");
        let in_bf16 = last_row(&fixture, "logits.4bit.bf16", vocabulary);
        assert_close(&ours, &in_bf16, 2e-2, folder);
    }
}

#[test]
fn an_8bit_network_gives_the_same_logits_and_is_no_further_from_the_full_ones() {
    let fixture = Fixture::open("network");
    let ids = ids(&fixture);
    for folder in ["quantized-base", "quantized-8bit"] {
        let base = base(folder, Precision::Int8);
        let vocabulary = base.config().vocab_size;
        let [theirs, full] =
            ["logits.8bit", "logits.full"].map(|name| last_row(&fixture, name, vocabulary));
        let ours = last_logits(&base, &ids);
        assert_no_worse(&ours, &theirs, &full, folder);
        assert_close(&ours, &theirs, 1e-4, folder);
    }
}

#[test]
fn a_base_quantized_here_is_held_as_one_that_was_quantized_there() {
    for (folder, precision) in [
        ("quantized-4bit", Precision::Nf4),
        ("quantized-8bit", Precision::Int8),
    ] {
        let (there, here) = (base(folder, precision), base("quantized-base", precision));
        let mut compared = 0;
        for layer in 0..there.config().num_hidden_layers {
            for target in Target::ALL {
                let name = format!("gpt_neox.layers.{layer}.{}.weight", target.path());
                match (there.weight(&name).unwrap(), here.weight(&name).unwrap()) {
                    (Weight::Nf4(there), Weight::Nf4(here)) => {
                        assert_eq!(there.packed(), here.packed(), "{name}");
                        assert_close(&here.dequantized(), &there.dequantized(), 1e-4, &name);
                    }
                    (Weight::Int8(there), Weight::Int8(here)) => assert_eq!(there, here, "{name}"),
                    other => panic!("{name}: {other:?}"),
                }
                compared += 1;
            }
        }
        assert_eq!(compared, 8);
    }
}

fn lora(fixture: &Fixture, config: &Config) -> Lora {
    let settings = LoraConfig {
        rank: 4,
        alpha: 8.0,
        dropout: 0.0,
        targets: Target::ALL.to_vec(),
    };
    let mut lora = Lora::init(config, &settings, 0).unwrap();
    for view in lora.views().collect::<Vec<_>>() {
        let values = fixture.floats(&format!("lora.{}", view.name));
        lora.values_mut()[view.range].copy_from_slice(&values);
    }
    lora
}

#[test]
fn adapters_over_a_4bit_base_have_pefts_gradients() {
    let fixture = Fixture::open("network");
    let base = base("quantized-base", Precision::Nf4);
    let lora = lora(&fixture, base.config());
    let ids = ids(&fixture);
    let labels: Vec<i32> = ids.iter().map(|&id| id.try_into().unwrap()).collect();
    let mut batch = Batch::new();
    batch.push(&ids, &labels, 0);
    let engine = Engine::new(base).unwrap();
    let (loss, gradients) = crate::support::learn(&engine, &lora, &[batch], None);
    for (compute, tolerance) in COMPUTE {
        let expected = f64::from(fixture.floats(&format!("loss.{compute}"))[0]);
        let off = (loss.sum / expected - 1.0).abs();
        assert!(off <= tolerance, "{compute}: the loss is off by {off:e}");
        for view in lora.views() {
            let name = format!("gradient.{compute}.{}", view.name);
            let expected = fixture.floats(&name);
            assert_close(&gradients[view.range], &expected, tolerance, &name);
        }
    }
    let recorded = fixture.names();
    let recorded = recorded.iter().filter(|name| name.starts_with("lora."));
    assert_eq!(recorded.count(), lora.views().count());
}
