//! Quantized folders: writing, reading, and refusals that name the fault.

use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use togi_model::{Base, Error, Precision, Target, Weight, base};

use crate::load::{Tensors, tensors, write};
use crate::support;

const QUANTIZED: [Precision; 2] = [Precision::Nf4, Precision::Int8];
const DENSE: &str = "gpt_neox.layers.1.attention.dense.weight";

/// Returns a base folder in f32 and its quantized folder.
fn folders(precision: Precision) -> (tempfile::TempDir, tempfile::TempDir) {
    let from = support::folder(&support::config());
    std::fs::write(from.path().join("spiece.model"), b"pieces").unwrap();
    let into = tempfile::tempdir().unwrap();
    base::write_quantized(from.path(), &into.path().join("base"), precision).unwrap();
    (from, into)
}

fn description(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
}

/// Returns the error of loading a quantized folder after changes to its configuration and tensors.
fn changed(precision: Precision, change: impl Fn(&mut Value, &mut Tensors)) -> String {
    let (_from, into) = folders(precision);
    let dir = into.path().join("base");
    let (mut config, mut tensors) = (description(&dir), tensors(&dir));
    change(&mut config, &mut tensors);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    write(&dir.join("model.safetensors"), &tensors);
    let error = Base::load_as(&dir, precision).err();
    let error: &dyn std::error::Error = &error.expect("refused");
    let cause = error.source().map_or(String::new(), ToString::to_string);
    format!("{error}: {cause}")
}

#[test]
fn a_written_folder_holds_what_loading_in_that_precision_holds() {
    for precision in QUANTIZED {
        let (from, into) = folders(precision);
        let dir = into.path().join("base");
        let at_once = Base::load_as(from.path(), precision).unwrap();
        let written = Base::load_as(&dir, precision).unwrap();
        assert_eq!(written.config(), at_once.config());
        assert_eq!(written.tokenizer(), Some(&b"pieces"[..]));
        assert_eq!(base::quantized_as(&dir).unwrap(), Some(precision));
        assert_eq!(base::quantized_as(from.path()).unwrap(), None);
        for (name, _) in tensors(from.path()) {
            let [a, b] = [&at_once, &written].map(|base| base.weight(&name).unwrap());
            match (a, b) {
                (Weight::Nf4(a), Weight::Nf4(b)) => assert_eq!(a, b, "{name}"),
                (Weight::Int8(a), Weight::Int8(b)) => assert_eq!(a, b, "{name}"),
                (Weight::Full(a), Weight::Full(b)) => {
                    let [a, b] = [a, b].map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
                    assert_eq!(a, b, "{name}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}

#[test]
fn the_names_and_types_are_bitsandbytes() {
    let (_from, into) = folders(Precision::Nf4);
    let written = tensors(&into.path().join("base"));
    let of = |part: &str| {
        let (dtype, shape, _) = &written[&format!("{DENSE}{part}")];
        (*dtype, shape.clone())
    };
    assert_eq!(of(""), (Dtype::U8, vec![288, 1]));
    assert_eq!(of(".absmax"), (Dtype::U8, vec![9]));
    assert_eq!(of(".quant_map"), (Dtype::F32, vec![16]));
    assert_eq!(of(".nested_absmax"), (Dtype::F32, vec![1]));
    assert_eq!(of(".nested_quant_map"), (Dtype::F32, vec![256]));
    let state: Value =
        serde_json::from_slice(&written[&format!("{DENSE}.quant_state.bitsandbytes__nf4")].2)
            .unwrap();
    let offset = state["nested_offset"].as_f64().unwrap();
    assert!(offset > 0.2 && offset < 0.25, "{offset}");
    assert_eq!(
        state,
        json!({
            "quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [24, 24],
            "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset,
        })
    );

    let (_from, into) = folders(Precision::Int8);
    let written = tensors(&into.path().join("base"));
    let module = DENSE.strip_suffix(".weight").unwrap();
    assert_eq!(written[DENSE].0, Dtype::I8);
    assert_eq!(written[&format!("{module}.SCB")].1, [24]);
    let layout = (Dtype::U8, vec![], vec![0]);
    assert_eq!(written[&format!("{module}.weight_format")], layout);
}

#[test]
fn what_is_not_quantized_keeps_its_type() {
    let (from, into) = folders(Precision::Nf4);
    let mut given = tensors(from.path());
    for (dtype, _, bytes) in given.values_mut() {
        let values = bytes.as_chunks::<4>().0.iter();
        *bytes = values
            .flat_map(|&b| half::f16::from_f32(f32::from_le_bytes(b)).to_le_bytes())
            .collect();
        *dtype = Dtype::F16;
    }
    write(&from.path().join("model.safetensors"), &given);
    let dir = into.path().join("half");
    base::write_quantized(from.path(), &dir, Precision::Nf4).unwrap();
    let written = tensors(&dir);
    for name in [
        "embed_out.weight",
        "gpt_neox.layers.0.attention.dense.bias",
        "gpt_neox.layers.0.input_layernorm.weight",
    ] {
        assert_eq!(written[name], given[name], "{name}");
    }
    let state = &written[&format!("{DENSE}.quant_state.bitsandbytes__nf4")].2;
    let state: Value = serde_json::from_slice(state).unwrap();
    assert_eq!(state["dtype"], "float16");
}

#[test]
fn scales_that_are_not_nested_are_taken() {
    let (_from, into) = folders(Precision::Nf4);
    let dir = into.path().join("base");
    let mut tensors = tensors(&dir);
    let state = format!("{DENSE}.quant_state.bitsandbytes__nf4");
    let plain =
        json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [24, 24]});
    let plain = plain.to_string().into_bytes();
    tensors.insert(state, (Dtype::U8, vec![plain.len()], plain));
    let scales = 0.25_f32.to_le_bytes().repeat(9);
    tensors.insert(format!("{DENSE}.absmax"), (Dtype::F32, vec![9], scales));
    for part in ["nested_absmax", "nested_quant_map"] {
        tensors.remove(&format!("{DENSE}.{part}")).unwrap();
    }
    write(&dir.join("model.safetensors"), &tensors);
    let base = Base::load_as(&dir, Precision::Nf4).unwrap();
    let Weight::Nf4(weight) = base.weight(DENSE).unwrap() else {
        panic!("not nf4");
    };
    assert_eq!(weight.scales().get(8), 0.25);
    assert_eq!(weight.packed(), tensors[DENSE].2);
}

#[test]
fn a_folder_is_held_only_as_what_it_is() {
    for precision in QUANTIZED {
        let (from, into) = folders(precision);
        let dir = into.path().join("base");
        for other in Precision::ALL.into_iter().filter(|&p| p != precision) {
            let error = Base::load_as(&dir, other).err().unwrap();
            let text = error.to_string();
            assert!(
                matches!(error, Error::Precision { precision, .. } if precision == other.name())
            );
            assert!(
                text.contains(other.name()) && text.contains(precision.name()),
                "{text}"
            );
        }
        let again = base::write_quantized(&dir, &into.path().join("again"), precision);
        assert!(again.err().unwrap().to_string().contains("already"));
        for other in Precision::ALL
            .into_iter()
            .filter(|p| !QUANTIZED.contains(p))
        {
            let plain = base::write_quantized(from.path(), &dir, other);
            let text = plain.err().unwrap().to_string();
            assert!(text.contains(other.name()), "{text}");
            assert!(text.contains("nf4 and int8"), "{text}");
        }
    }
    assert_eq!(Precision::from_name("int8").unwrap(), Precision::Int8);
    let unknown = Precision::from_name("int4").unwrap_err();
    assert!(matches!(
        unknown,
        Error::Field {
            field: "base_precision",
            ..
        }
    ));
}

#[test]
fn quantizations_that_are_not_understood_are_refused_by_name() {
    let setting = |precision, field: &str, value: Value| {
        let said = changed(precision, |config, _| {
            config["quantization_config"][field] = value.clone();
        });
        assert!(said.contains(field), "{said}");
    };
    setting(Precision::Nf4, "quant_method", json!("gptq"));
    setting(Precision::Nf4, "bnb_4bit_quant_type", json!("fp4"));
    setting(Precision::Nf4, "bnb_4bit_quant_storage", json!("bfloat16"));
    setting(Precision::Nf4, "load_in_4bit", json!(false));
    setting(Precision::Nf4, "load_in_8bit", json!(true));
    setting(Precision::Int8, "llm_int8_threshold", json!(0.0));
    setting(Precision::Int8, "llm_int8_has_fp16_weight", json!(true));

    let state = |field: &str, value: Value| {
        let said = changed(Precision::Nf4, |_, tensors| {
            let name = format!("{DENSE}.quant_state.bitsandbytes__nf4");
            let (_, shape, bytes) = tensors.get_mut(&name).unwrap();
            let mut state: Value = serde_json::from_slice(bytes).unwrap();
            state[field] = value.clone();
            *bytes = state.to_string().into_bytes();
            *shape = vec![bytes.len()];
        });
        assert!(said.contains(field), "{said}");
    };
    state("quant_type", json!("fp4"));
    state("blocksize", json!(128));
    state("dtype", json!("float64"));
    state("nested_blocksize", json!(64));
    state("nested_dtype", json!("float16"));
    state("nested_zero_point", json!(0));
}

#[test]
fn broken_parts_are_refused_by_name() {
    let module = DENSE.strip_suffix(".weight").unwrap();
    let without = |precision, part: String| {
        let said = changed(precision, |_, tensors| drop(tensors.remove(&part).unwrap()));
        assert!(said.contains(&part), "{said}");
    };
    let parts = [
        "",
        ".absmax",
        ".quant_map",
        ".nested_absmax",
        ".nested_quant_map",
        ".quant_state.bitsandbytes__nf4",
    ];
    for part in parts {
        without(Precision::Nf4, format!("{DENSE}{part}"));
    }
    without(Precision::Int8, format!("{module}.SCB"));

    let with = |precision, part: String, tensor: (Dtype, Vec<usize>, Vec<u8>)| {
        let said = changed(precision, |_, tensors| {
            tensors.insert(part.clone(), tensor.clone());
        });
        assert!(said.contains(&part), "{said}");
    };
    let layout = (Dtype::U8, vec![], vec![1]);
    with(Precision::Int8, format!("{module}.weight_format"), layout);
    let not_finite = (Dtype::F32, vec![1], f32::NAN.to_le_bytes().to_vec());
    with(Precision::Nf4, format!("{DENSE}.nested_absmax"), not_finite);
    let stray = (Dtype::F32, vec![1], vec![0; 4]);
    with(Precision::Nf4, format!("{DENSE}.zero_points"), stray);
    // A layer that is not quantized, and a head that is.
    let full = || (Dtype::F32, vec![24, 24], vec![0; 4 * 24 * 24]);
    for precision in QUANTIZED {
        with(precision, DENSE.into(), full());
        let head = (Dtype::U8, vec![444, 1], vec![0; 444]);
        with(precision, "embed_out.weight".into(), head);
    }
    let said = changed(Precision::Int8, |_, tensors| {
        let scales = (Dtype::F32, vec![23], vec![0; 92]);
        tensors.insert(format!("{module}.SCB"), scales);
    });
    assert!(said.contains(DENSE) && said.contains("SCB"), "{said}");
    let said = changed(Precision::Nf4, |_, tensors| {
        tensors.get_mut(&format!("{DENSE}.quant_map")).unwrap().2[5] ^= 1;
    });
    assert!(said.contains(DENSE) && said.contains("quant_map"), "{said}");
    let names = Target::ALL.map(|target| format!("gpt_neox.layers.0.{}.weight", target.path()));
    let said = changed(Precision::Nf4, |_, tensors| {
        for name in &names {
            let (_, shape, bytes) = tensors.get_mut(name).unwrap();
            bytes.pop();
            *shape = vec![bytes.len(), 1];
        }
    });
    assert!(names.iter().any(|name| said.contains(name)), "{said}");
}

#[test]
fn a_value_beyond_fp16_is_refused_for_int8_alone() {
    let dir = support::folder(&support::config());
    let mut given = tensors(dir.path());
    given.get_mut(DENSE).unwrap().2[..4].copy_from_slice(&70_000_f32.to_le_bytes());
    write(&dir.path().join("model.safetensors"), &given);
    Base::load_as(dir.path(), Precision::Nf4).unwrap();
    let text = Base::load_as(dir.path(), Precision::Int8)
        .err()
        .unwrap()
        .to_string();
    assert!(text.contains(DENSE), "{text}");
}
