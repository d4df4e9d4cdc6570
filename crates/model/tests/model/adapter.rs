//! Writing and reading adapters: canonical bytes, PEFT's names, and every refused case.

use safetensors::SafeTensors;
use serde_json::{Value, json};
use togi_model::adapter::{self, Files, Identity};
use togi_model::{Config, Error, Lora, LoraConfig, Target};

use crate::support;

fn files(targets: &[Target]) -> Files {
    adapter::to_files(&support::lora(&support::config(), targets), "togi/base").unwrap()
}

fn read(files: &Files) -> togi_model::Result<Lora> {
    adapter::from_files(&files.config, &files.tensors, &support::config())
}

fn with(files: &Files, key: &str, value: Value) -> Files {
    let mut config: Value = serde_json::from_slice(&files.config).unwrap();
    config[key] = value;
    Files {
        config: config.to_string().into_bytes(),
        ..files.clone()
    }
}

/// Returns the same tensors with a changed header and its new length.
fn with_header(files: &Files, change: impl Fn(String) -> String) -> Files {
    let (len, rest) = files.tensors.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    let header = change(String::from_utf8(header.to_vec()).unwrap());
    let mut tensors = (header.len() as u64).to_le_bytes().to_vec();
    tensors.extend_from_slice(header.as_bytes());
    tensors.extend_from_slice(data);
    Files {
        tensors,
        ..files.clone()
    }
}

fn refused(files: &Files, text: &str) {
    let error = read(files).unwrap_err();
    assert!(
        error.to_string().contains(text),
        "{error} does not say {text:?}"
    );
}

#[test]
fn an_adapter_comes_back_as_it_was_and_its_bytes_are_canonical() {
    for targets in [&[Target::QueryKeyValue][..], &Target::ALL] {
        let lora = support::lora(&support::config(), targets);
        let files = files(targets);
        let back = read(&files).unwrap();
        assert_eq!(back, lora);
        assert_eq!(adapter::to_files(&back, "togi/base").unwrap(), files);
    }
}

#[test]
fn names_and_keys_are_pefts() {
    let files = files(&Target::ALL);
    let tensors = SafeTensors::deserialize(&files.tensors).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&files.tensors).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    assert_eq!(tensors.len(), 16);
    for (name, shape) in [
        ("attention.query_key_value.lora_A", [4, 24]),
        ("attention.query_key_value.lora_B", [72, 4]),
        ("attention.dense.lora_A", [4, 24]),
        ("mlp.dense_h_to_4h.lora_B", [40, 4]),
        ("mlp.dense_4h_to_h.lora_A", [4, 40]),
    ] {
        let tensor = tensors
            .tensor(&format!("base_model.model.gpt_neox.layers.1.{name}.weight"))
            .unwrap();
        assert_eq!(tensor.shape(), shape);
    }
    let config: Value = serde_json::from_slice(&files.config).unwrap();
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!(config["task_type"], "CAUSAL_LM");
    assert_eq!(
        (config["r"].as_u64(), config["lora_alpha"].as_u64()),
        (Some(4), Some(8))
    );
    assert_eq!(
        config["target_modules"],
        json!(["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"])
    );
    assert_eq!(config["base_model_name_or_path"], "togi/base");
    let text = String::from_utf8(files.config).unwrap();
    let keys: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with("  \""))
        .map(|l| l.trim())
        .collect();
    assert!(keys.is_sorted(), "{keys:?}");
}

#[test]
fn what_peft_writes_today_is_read() {
    let mut files = files(&[Target::QueryKeyValue]);
    for (key, value) in [
        ("peft_version", json!("0.21.2")),
        (
            "auto_mapping",
            json!({"base_model_class": "GPTNeoXForCausalLM"}),
        ),
        ("megatron_core", json!("megatron.core")),
        ("qalora_group_size", json!(16)),
        ("loftq_config", json!({})),
        ("eva_config", Value::Null),
        ("lora_bias", json!(false)),
        ("use_qalora", json!(false)),
        ("lora_alpha", json!(8.0)),
    ] {
        files = with(&files, key, value);
    }
    read(&files).unwrap();
}

#[test]
fn patterns_and_rank_stabilised_scales_are_understood() {
    let config = support::config();
    let plain = files(&[Target::QueryKeyValue, Target::Dense]);
    let scale = |lora: &Lora, target| {
        lora.modules()
            .iter()
            .find(|m| m.target == target)
            .unwrap()
            .scale
    };

    let lora = read(&with(
        &plain,
        "alpha_pattern",
        json!({"attention.dense": 32}),
    ))
    .unwrap();
    assert_eq!(
        (
            scale(&lora, Target::QueryKeyValue),
            scale(&lora, Target::Dense)
        ),
        (2.0, 8.0)
    );
    let again = adapter::to_files(&lora, "x").unwrap();
    assert_eq!(read(&again).unwrap().modules(), lora.modules());

    let lora = read(&with(&plain, "use_rslora", json!(true))).unwrap();
    assert_eq!(scale(&lora, Target::Dense), 8.0 / 2.0);
    assert_eq!(read(&adapter::to_files(&lora, "x").unwrap()).unwrap(), lora);

    // The tensors have rank 4. A different default has no effect if every module has a pattern.
    let ranks = with(
        &plain,
        "rank_pattern",
        json!({"query_key_value": 4, "dense": 4}),
    );
    let lora = read(&with(&ranks, "r", json!(6))).unwrap();
    assert!(lora.modules().iter().all(|module| module.rank == 4));
    assert_eq!(read(&adapter::to_files(&lora, "x").unwrap()).unwrap(), lora);

    // As in PEFT, keys are regular expressions, and the first match in the file's order counts.
    let lora = read(&with(
        &plain,
        "alpha_pattern",
        json!({"layers\\.0\\..*": 4, ".*": 16}),
    ))
    .unwrap();
    // `json!` sorts an object by name, as PEFT does.
    let alphas: Vec<f64> = lora.modules().iter().map(|module| module.alpha).collect();
    assert_eq!(alphas, [16.0, 16.0, 16.0, 16.0]);
    refused(
        &with(&plain, "rank_pattern", json!({"(?!dense)": 4})),
        "rank_pattern",
    );
    refused(
        &with(&plain, "alpha_pattern", json!({"dense": "8"})),
        "alpha_pattern",
    );
    refused(&with(&plain, "rank_pattern", json!({"dense": 5})), "shape");
    assert!(
        LoraConfig {
            rank: 25,
            ..support::lora_config(&[Target::Dense])
        }
        .validate(&config)
        .is_err()
    );
}

#[test]
fn features_that_would_change_the_numbers_are_refused_by_name() {
    let plain = files(&[Target::QueryKeyValue]);
    for (key, value) in [
        ("use_dora", json!(true)),
        ("use_rslora", json!("true")),
        ("lora_dropout", json!("0.1")),
        ("modules_to_save", json!(["embed_in"])),
        ("bias", json!("lora_only")),
        ("fan_in_fan_out", json!(true)),
        ("lora_bias", json!(true)),
        ("peft_type", json!("IA3")),
        ("task_type", json!("SEQ_CLS")),
        ("layer_replication", json!([[0, 1]])),
        ("trainable_token_indices", json!([1])),
        ("something_new", json!("on")),
        ("target_modules", json!("all-linear")),
        ("target_modules", json!(["q_proj"])),
        ("r", json!(0)),
        ("r", json!(-1)),
        ("lora_alpha", json!("8")),
        ("layers_to_transform", json!("0")),
        ("init_lora_weights", json!("pissa")),
    ] {
        let error = read(&with(&plain, key, value.clone()))
            .unwrap_err()
            .to_string();
        let field = if key == "r" { "r" } else { key };
        assert!(error.contains(field), "{key} = {value}: {error}");
    }
    assert!(matches!(
        read(&Files {
            config: b"{".into(),
            ..plain.clone()
        }),
        Err(Error::Json { .. })
    ));
    assert!(matches!(
        read(&with(&plain, "r", json!(5))),
        Err(Error::Shape { .. })
    ));
}

#[test]
fn tensors_that_do_not_belong_are_refused_whole() {
    let plain = files(&[Target::QueryKeyValue]);
    refused(
        &with(&plain, "target_modules", json!(["dense"])),
        "query_key_value",
    );
    refused(
        &with(
            &plain,
            "target_modules",
            json!(["dense", "query_key_value"]),
        ),
        "missing",
    );
    refused(&with(&plain, "layers_to_transform", json!([0])), "layers.1");
    refused(
        &with(&plain, "layers_to_transform", json!([0, 1, 2])),
        "missing",
    );
    read(&with(&plain, "layers_to_transform", json!([0, 1]))).unwrap();
    // A module that is missing from the settings.
    let both = files(&[Target::QueryKeyValue, Target::Dense]);
    refused(
        &with(&both, "target_modules", json!(["query_key_value"])),
        "attention.dense",
    );
    // Names of equal length keep the offsets valid.
    let unknown = with_header(&plain, |header| header.replace("layers.1", "layers.7"));
    assert!(read(&unknown).is_err());
    let stray = with_header(&both, |header| {
        header.replace("attention.dense", "attention.xense")
    });
    assert!(matches!(
        read(&with(&stray, "target_modules", json!(["query_key_value"]))),
        Err(Error::Unexpected(names)) if names.len() == 4
    ));
    let half = with_header(&plain, |header| header.replacen("lora_A", "lora_C", 1));
    assert!(matches!(read(&half), Err(Error::Unexpected(names)) if names.len() == 1));
    let shape = with_header(&plain, |header| header.replacen("[4,24]", "[24,4]", 1));
    assert!(matches!(read(&shape), Err(Error::Shape { .. })));
    let dtype = with_header(&plain, |header| header.replace("F32", "I32"));
    refused(&dtype, "not a float type");
}

#[test]
fn a_name_that_occurs_twice_is_refused() {
    let plain = files(&[Target::QueryKeyValue]);
    let twice = with_header(&plain, |header| header.replace("layers.1", "layers.0"));
    assert!(matches!(read(&twice), Err(Error::Duplicate(name)) if name.contains("layers.0")));
}

#[test]
fn values_that_are_not_finite_are_refused_in_and_out() {
    let mut lora = support::lora(&support::config(), &[Target::QueryKeyValue]);
    let good = adapter::to_files(&lora, "x").unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        lora.values_mut()[0] = bad;
        assert!(matches!(
            adapter::to_files(&lora, "x"),
            Err(Error::NotFinite(_))
        ));
        let mut files = good.clone();
        let at = files.tensors.len() - 4;
        files.tensors[at..].copy_from_slice(&bad.to_le_bytes());
        assert!(matches!(read(&files), Err(Error::NotFinite(_))));
    }
}

#[test]
fn broken_files_are_refused() {
    let plain = files(&[Target::QueryKeyValue]);
    let broken = |tensors: Vec<u8>| Files {
        tensors,
        ..plain.clone()
    };
    refused(&broken(vec![]), "too short");
    refused(&broken((1u64 << 21).to_le_bytes().to_vec()), "header");
    refused(&broken(u64::MAX.to_le_bytes().to_vec()), "header");
    refused(&broken(100u64.to_le_bytes().to_vec()), "header");
    assert!(read(&broken(plain.tensors[..plain.tensors.len() - 1].to_vec())).is_err());
    let mut longer = plain.tensors.clone();
    longer.push(0);
    assert!(read(&broken(longer)).is_err());
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let plain = files(&[Target::QueryKeyValue]);
    for config in [
        Config {
            num_hidden_layers: 3,
            ..support::config()
        },
        Config {
            num_hidden_layers: 1,
            ..support::config()
        },
        Config {
            hidden_size: 48,
            ..support::config()
        },
    ] {
        assert!(adapter::from_files(&plain.config, &plain.tensors, &config).is_err());
    }
}

/// Published adapters are named by these digests, so the hashed form must never change.
#[test]
fn a_generation_is_the_digest_of_the_files_and_the_identity() {
    let files = Files {
        config: br#"{"r": 4}"#.to_vec(),
        tensors: b"tensors".to_vec(),
    };
    let identity: Identity = serde_json::from_value(json!({
        "base": "b", "tokenizer": "t", "template": "p", "dataset": "d", "recipe": "r",
        "base_representation": "nf4",
    }))
    .unwrap();
    assert_eq!(identity.base_precision, "nf4");
    // Computed in Python.
    let expected = "7ba456649c5093c9c2943d2b7af9eb93af7126d7ab1230edd2c4510b719778bc";
    let generation = adapter::generation(&files, &identity).unwrap();
    assert_eq!(generation.to_string(), expected);
}

#[test]
fn the_generation_depends_on_every_part_and_not_on_the_configurations_layout() {
    let plain = files(&[Target::QueryKeyValue]);
    let text = |value: &str| value.to_owned();
    let identity = Identity {
        base: text("b"),
        tokenizer: text("t"),
        template: text("p"),
        dataset: text("d"),
        recipe: text("r"),
        base_precision: text("f32"),
    };
    let generation = adapter::generation(&plain, &identity).unwrap();
    let spread: Value = serde_json::from_slice(&plain.config).unwrap();
    let compact = Files {
        config: spread.to_string().into_bytes(),
        ..plain.clone()
    };
    assert_eq!(
        generation,
        adapter::generation(&compact, &identity).unwrap()
    );
    assert_ne!(
        generation,
        adapter::generation(&with(&plain, "r", json!(5)), &identity).unwrap()
    );
    let other = Identity {
        recipe: text("s"),
        ..identity.clone()
    };
    assert_ne!(generation, adapter::generation(&plain, &other).unwrap());
    let mut changed = plain.clone();
    *changed.tensors.last_mut().unwrap() ^= 1;
    assert_ne!(
        generation,
        adapter::generation(&changed, &identity).unwrap()
    );
}
