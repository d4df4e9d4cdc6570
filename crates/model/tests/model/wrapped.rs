//! Adapters and bases as other tools save them: names of wrappers, f64, initialisations, the head's
//! other name. What is read is compared with the plain folder, byte for byte.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use togi_model::adapter::{self, Files};
use togi_model::{Base, Engine, Error, Lora, Target, base};

use crate::load::{self, Tensors};
use crate::support;

const PEFT: &str = "base_model.model.";

fn plain() -> Files {
    let lora = support::lora(&support::config(), &[Target::QueryKeyValue, Target::Dense]);
    adapter::to_files(&lora, "togi/base").unwrap()
}

fn read(files: &Files) -> togi_model::Result<Lora> {
    adapter::from_files(&files.config, &files.tensors, &support::config())
}

/// The same adapter with its tensors changed.
fn changed(files: &Files, change: impl Fn(Tensors) -> Tensors) -> Files {
    let file = SafeTensors::deserialize(&files.tensors).unwrap();
    let entry = |(name, view): (&str, TensorView<'_>)| {
        let (shape, bytes) = (view.shape().to_vec(), view.data().to_vec());
        (name.to_owned(), (view.dtype(), shape, bytes))
    };
    let tensors = change(file.iter().map(entry).collect());
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    Files {
        tensors: safetensors::serialize(views, None).unwrap(),
        ..files.clone()
    }
}

fn renamed(files: &Files, rename: impl Fn(&str) -> String) -> Files {
    changed(files, |tensors| {
        let tensors = tensors.into_iter();
        tensors.map(|(name, rest)| (rename(&name), rest)).collect()
    })
}

fn with(files: &Files, entries: Value) -> Files {
    let mut config: Value = serde_json::from_slice(&files.config).unwrap();
    let entries = entries.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(entries);
    Files {
        config: config.to_string().into_bytes(),
        ..files.clone()
    }
}

/// Checks that the adapter is the plain one.
fn is_plain(files: &Files, what: &str) {
    let lora = read(files).unwrap_or_else(|error| panic!("{what}: {error}"));
    let files = adapter::to_files(&lora, "togi/base").unwrap();
    assert!(files == plain(), "{what}");
}

fn refused(files: &Files, says: &[&str]) {
    let error = read(files).unwrap_err().to_string();
    for text in says {
        assert!(error.contains(text), "{error} does not say {text:?}");
    }
}

/// Halves of f32's steps, away from the values, and what torch rounds them to: the nearest f32.
fn in_f64(bytes: &[u8]) -> Vec<u8> {
    let values = bytes.as_chunks::<4>().0.iter();
    values
        .flat_map(|&bytes| {
            let value = f64::from(f32::from_le_bytes(bytes));
            (value * (1.0 + 2.0_f64.powi(-26))).to_le_bytes()
        })
        .collect()
}

#[test]
fn an_adapter_of_a_wrapped_model_is_the_plain_one() {
    type Rename = fn(&str) -> String;
    let table: [(&str, Rename); 9] = [
        ("torch.compile", |n| format!("_orig_mod.{n}")),
        ("distributed", |n| format!("module.{n}")),
        ("compiled and distributed", |n| {
            format!("module._orig_mod.{n}")
        }),
        ("compiled inside", |n| {
            n.replace(PEFT, "base_model.model._orig_mod.")
        }),
        ("sharded", |n| {
            let n = n.replace(".attention", "._fsdp_wrapped_module.attention");
            format!("_fsdp_wrapped_module.{n}")
        }),
        ("in memory", |n| n.replace(".weight", ".default.weight")),
        ("wrapped again", |n| format!("{PEFT}{n}")),
        ("no prefix", |n| n.replace(PEFT, "")),
        ("all", |n| {
            let n = n.replace(".weight", ".default.weight");
            format!("module.{PEFT}_orig_mod.{n}")
        }),
    ];
    for (what, rename) in table {
        is_plain(&renamed(&plain(), rename), what);
    }
}

#[test]
fn other_names_are_refused_with_the_names_that_are_there() {
    let other = |n: &str| n.replace(".weight", ".mine.weight");
    refused(
        &renamed(&plain(), other),
        &["lora_A.mine.weight", "and 4 more"],
    );
    let body = |n: &str| n.replace("gpt_neox.", "transformer.");
    refused(
        &renamed(&plain(), body),
        &["unknown", "base_model.model.transformer.layers.0"],
    );
    // One tensor under two names: which counts is unknown.
    let twice = changed(&plain(), |mut tensors| {
        let (name, tensor) = tensors.first_key_value().unwrap();
        let copy = (format!("module.{name}"), tensor.clone());
        tensors.extend([copy]);
        tensors
    });
    assert!(matches!(read(&twice), Err(Error::Duplicate(_))));
}

#[test]
fn a_head_or_an_embedding_in_an_adapter_is_refused_by_any_of_its_names() {
    for name in [
        "base_model.model.lm_head.weight",
        "base_model.model.embed_out.lora_A.weight",
        "base_model.model.gpt_neox.embed_in.lora_embedding_A",
        "module.base_model.model.lm_head.lora_B.default.weight",
    ] {
        let files = changed(&plain(), |mut tensors| {
            let value = (Dtype::F32, vec![1], vec![0; 4]);
            tensors.extend([(name.to_owned(), value)]);
            tensors
        });
        refused(&files, &[name, "lm_head", "save_embedding_layers=False"]);
    }
    for name in ["lm_head", "embed_out"] {
        // Named and not there: PEFT's own start values change nothing.
        let named = with(
            &plain(),
            json!({"target_modules": ["query_key_value", "dense", name]}),
        );
        is_plain(&named, name);
        let saved = with(&plain(), json!({"modules_to_save": [name]}));
        refused(&saved, &["modules_to_save", "train the adapter without it"]);
    }
}

#[test]
fn an_adapter_in_f64_is_the_nearest_in_f32() {
    let wide = changed(&plain(), |tensors| {
        let tensors = tensors.into_iter();
        let wide =
            tensors.map(|(name, (_, shape, bytes))| (name, (Dtype::F64, shape, in_f64(&bytes))));
        wide.collect()
    });
    is_plain(&wide, "f64");
    for (value, says) in [(1e39, "beyond the range of f32"), (f64::NAN, "not finite")] {
        let bad = changed(&wide, |mut tensors| {
            for (_, _, bytes) in tensors.values_mut() {
                bytes[..8].copy_from_slice(&value.to_le_bytes());
            }
            tensors
        });
        refused(&bad, &["lora_", says]);
    }
    let integers = changed(&plain(), |mut tensors| {
        tensors
            .values_mut()
            .for_each(|tensor| tensor.0 = Dtype::I32);
        tensors
    });
    refused(&integers, &["I32", "f64, f32, fp16 and bf16"]);
}

#[test]
fn an_initialisation_s_settings_count_only_where_it_changes_the_base() {
    let eva = json!({"rho": 2.0, "tau": 0.99, "use_label_mask": true, "whiten": false});
    let corda = json!({"corda_method": "ipm"});
    for entries in [
        json!({"init_lora_weights": "eva", "eva_config": eva}),
        json!({"init_lora_weights": true, "eva_config": eva}),
        json!({"init_lora_weights": true, "corda_config": corda, "loftq_config": {"bits": 4}}),
    ] {
        is_plain(&with(&plain(), entries.clone()), &entries.to_string());
    }
    let entries = json!({"init_lora_weights": "corda", "corda_config": corda});
    refused(&with(&plain(), entries), &["init_lora_weights", "corda"]);
}

/// The plain base of [`support::config`] and the same with its tensors changed.
fn bases(change: impl Fn(Tensors) -> Tensors) -> (Base, togi_model::Result<Base>) {
    let dir = tempfile::tempdir().unwrap();
    base::write_random(dir.path(), &support::config(), 3).unwrap();
    let base = Base::load(dir.path()).unwrap();
    let tensors = change(load::tensors(dir.path()));
    load::write(&dir.path().join("model.safetensors"), &tensors);
    (base, Base::load(dir.path()))
}

fn assert_same(plain: &Base, other: &Base, what: &str) {
    let values = |base: &Base, name: &str| -> Vec<f32> {
        let tensor = base.tensor(name).unwrap().flatten_all().unwrap();
        tensor.to_vec1().unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    base::write_random(dir.path(), plain.config(), 3).unwrap();
    for name in load::tensors(dir.path()).keys() {
        assert!(values(plain, name) == values(other, name), "{what}: {name}");
    }
}

#[test]
fn a_base_of_a_wrapped_model_is_the_plain_one() {
    type Rename = fn(&str) -> String;
    let table: [(&str, Rename); 6] = [
        ("torch.compile", |n| format!("_orig_mod.{n}")),
        ("distributed", |n| format!("module.{n}")),
        ("a model's part", |n| format!("model.{n}")),
        ("no prefix", |n| n.replace("gpt_neox.", "")),
        ("the head of transformers 5", |n| {
            n.replace("embed_out", "lm_head")
        }),
        ("both", |n| {
            format!("module.{}", n.replace("embed_out", "lm_head"))
        }),
    ];
    for (what, rename) in table {
        let (plain, other) = bases(|tensors| {
            // With a buffer of 2023, which is left out under any name.
            let buffer = "gpt_neox.layers.0.attention.bias".to_owned();
            let buffer = (buffer, (Dtype::BOOL, vec![1, 1, 4, 4], vec![0; 16]));
            let tensors = tensors.into_iter().chain([buffer]);
            tensors.map(|(name, rest)| (rename(&name), rest)).collect()
        });
        let other = other.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_same(&plain, &other, what);
    }
    let (_, other) = bases(|tensors| {
        let rename = |name: String| name.replace("gpt_neox.", "transformer.");
        let tensors = tensors.into_iter();
        tensors.map(|(name, rest)| (rename(name), rest)).collect()
    });
    let error = other.err().unwrap();
    assert!(matches!(error, Error::Misnamed { .. }));
    let text = error.to_string();
    assert!(
        text.contains("gpt_neox.embed_in.weight is missing"),
        "{text}"
    );
    assert!(text.contains("transformer.embed_in.weight"), "{text}");
    assert!(text.len() < 400, "{text}");
}

#[test]
fn a_base_in_f64_is_the_nearest_in_f32() {
    let (plain, wide) = bases(|tensors| {
        let wide = tensors.into_iter();
        let wide =
            wide.map(|(name, (_, shape, bytes))| (name, (Dtype::F64, shape, in_f64(&bytes))));
        wide.collect()
    });
    assert_same(&plain, &wide.unwrap(), "f64");
}

#[test]
fn a_base_s_own_dropout_does_not_change_its_logits() {
    let dir = tempfile::tempdir().unwrap();
    base::write_random(dir.path(), &support::config(), 3).unwrap();
    let logits = || {
        let engine = Engine::new(Base::load(dir.path()).unwrap().into()).unwrap();
        engine.logits(&[5, 6, 7, 8], None).unwrap()
    };
    let plain = logits();
    let file = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["hidden_dropout"] = json!(0.1);
    config["attention_dropout"] = json!(0.25);
    std::fs::write(&file, config.to_string()).unwrap();
    assert_eq!(logits(), plain);
    let config = Base::load(dir.path()).unwrap().config().clone();
    // What is written again still says so, for those who train over it.
    let again = togi_model::Config::from_json(&config.to_json()).unwrap();
    assert_eq!(again, config);
    assert_eq!((again.hidden_dropout, again.attention_dropout), (0.1, 0.25));
}
