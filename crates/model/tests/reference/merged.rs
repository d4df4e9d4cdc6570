//! Adapters and merged bases that we write, as PEFT and transformers read them.

use std::path::Path;
use std::process::Command;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use togi_model::merge::{self, Special};
use togi_model::{Base, Engine, Lora, adapter, base};

use crate::fixtures::{self, assert_near, path, tensors, whole, with_lora, workspace};

/// An adapter of PEFT with patterns of alphas and ranks, read by us.
fn adapter_of(engine: &Engine, name: &str) -> Lora {
    adapter::from_folder(&path(&format!("adapters/{name}")), engine.config()).unwrap()
}

fn ids() -> Vec<u32> {
    let value: Value = fixtures::json("adapters.json");
    serde_json::from_value(value["ids"].clone()).unwrap()
}

fn write_adapter(lora: &Lora, folder: &Path) {
    let files = adapter::to_files(lora, "tiny").unwrap();
    std::fs::write(folder.join(adapter::CONFIG_FILE), files.config).unwrap();
    std::fs::write(folder.join(adapter::TENSORS_FILE), files.tensors).unwrap();
}

/// The bytes that PEFT has loaded. `TOGI_WRITE_OURS=1` writes the folder again.
#[test]
fn the_adapter_that_peft_has_loaded_is_what_is_written() {
    let engine = fixtures::tiny();
    let lora = adapter_of(&engine, "rank-pattern");
    let folder = path("adapters/ours");
    if std::env::var_os("TOGI_WRITE_OURS").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        write_adapter(&lora, &folder);
    }
    let files = adapter::to_files(&lora, "tiny").unwrap();
    for (name, bytes) in [
        (adapter::CONFIG_FILE, files.config),
        (adapter::TENSORS_FILE, files.tensors),
    ] {
        let committed = std::fs::read(folder.join(name)).unwrap();
        assert!(
            bytes == committed,
            "{name} has other bytes than PEFT was given"
        );
    }
    let want = &tensors(&path("ours.safetensors"))["logits"].1;
    assert_near(&with_lora(&engine, &ids(), &lora), want, 1e-4, "logits");
}

#[test]
fn a_merged_base_is_the_one_that_peft_merges() {
    let engine = fixtures::tiny();
    let special = Special::of(engine.config());
    let lora = adapter_of(&engine, "four");
    assert!(
        lora.modules().iter().all(|module| module.scale == 2.5),
        "alpha 10, rank 4"
    );
    let folder = tempfile::tempdir().unwrap();
    merge::write_merged(folder.path(), engine.base(), &lora, &special).unwrap();
    let (ours, pefts) = (
        tensors(&folder.path().join("model.safetensors")),
        tensors(&path("merged/model.safetensors")),
    );
    assert!(ours.keys().eq(pefts.keys()), "the same tensors");
    for (name, (shape, want)) in &pefts {
        assert_eq!(ours[name].0, *shape, "{name}");
        assert_near(&ours[name].1, want, 1e-6, name);
    }
    let logits = fixtures::tensors(&path("adapters.safetensors"));
    let merged = fixtures::load(folder.path());
    assert_eq!(merged.config(), engine.config());
    let got = whole(&merged, &ids(), None);
    assert_near(&got, &logits["merged"].1, 1e-4, "merged");
    assert_near(&got, &with_lora(&engine, &ids(), &lora), 1e-4, "unmerged");
}

#[test]
fn every_adapter_can_be_merged() {
    let engine = fixtures::tiny();
    let special = Special::of(engine.config());
    for name in [
        "rank-pattern",
        "alpha-pattern",
        "rank-stabilised",
        "one-layer",
        "full-names",
    ] {
        let lora = adapter_of(&engine, name);
        let folder = tempfile::tempdir().unwrap();
        merge::write_merged(folder.path(), engine.base(), &lora, &special).unwrap();
        let merged = fixtures::load(folder.path());
        let unmerged = with_lora(&engine, &ids(), &lora);
        assert_near(&whole(&merged, &ids(), None), &unmerged, 1e-4, name);
    }
}

#[test]
fn a_merged_base_keeps_its_tokenizer_and_takes_no_foreign_adapter() {
    let tiny = fixtures::tiny();
    let demo = Base::load(&workspace().join("demo/base")).unwrap();
    let special = Special::of(demo.config());
    let folder = tempfile::tempdir().unwrap();
    let error = merge::write_merged(folder.path(), &demo, &adapter_of(&tiny, "four"), &special);
    assert!(error.unwrap_err().to_string().contains("does not fit"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

    let config = togi_model::LoraConfig {
        rank: 2,
        alpha: 3.0,
        dropout: 0.0,
        targets: togi_model::Target::ALL.to_vec(),
    };
    let lora = Lora::init(demo.config(), &config, 1).unwrap();
    merge::write_merged(folder.path(), &demo, &lora, &special).unwrap();
    let merged = Base::load(folder.path()).unwrap();
    assert_eq!(merged.tokenizer(), demo.tokenizer());
    let name = "gpt_neox.layers.3.mlp.dense_4h_to_h.weight";
    let values = |base: &Base| -> Vec<f32> {
        let tensor = base.tensor(name).unwrap().flatten_all().unwrap();
        tensor.to_vec1().unwrap()
    };
    assert_eq!(values(&merged), values(&demo), "B is zero");
}

/// transformers 4 reads the old names of a configuration, and 5 the new ones.
#[test]
fn a_merged_base_keeps_its_settings_in_the_spellings_of_all_versions() {
    let engine = fixtures::tiny();
    let folder = tempfile::tempdir().unwrap();
    let part = |name: &str| folder.path().join(name);
    let json = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(part(name)).unwrap()).unwrap()
    };
    std::fs::create_dir(part("base")).unwrap();
    base::write(&part("base"), engine.config(), |name, _| {
        let tensor = engine.base().tensor(name).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    })
    .unwrap();
    let mut own = json("base/config.json");
    let fields = own.as_object_mut().unwrap();
    for old in ["rotary_pct", "rotary_emb_base"] {
        fields.remove(old);
    }
    let rope = json!({
        "partial_rotary_factor": 0.5, "rope_theta": 5000.0, "rope_type": "default",
    });
    fields.insert("rope_parameters".into(), rope.clone());
    fields.insert("dtype".into(), json!("bfloat16"));
    fields.insert("use_cache".into(), json!(false));
    std::fs::write(part("base/config.json"), own.to_string()).unwrap();
    let said = json!({ "temperature": 0.5, "eos_token_id": 9 });
    std::fs::write(part("base/generation_config.json"), said.to_string()).unwrap();

    let written = Base::load(&part("base")).unwrap();
    let lora = adapter_of(&engine, "four");
    let special = Special {
        eos: vec![3, 9],
        pad: Some(0),
    };
    for (name, base) in [("own", &written), ("made", engine.base())] {
        std::fs::create_dir(part(name)).unwrap();
        merge::write_merged(&part(name), base, &lora, &special).unwrap();
    }
    let config = json("own/config.json");
    for (name, value) in [
        ("rope_parameters", rope),
        ("rotary_pct", json!(0.5)),
        ("rotary_emb_base", json!(5000.0)),
        ("dtype", json!("float32")),
        ("torch_dtype", json!("float32")),
        ("use_cache", json!(false)),
        ("eos_token_id", json!([3, 9])),
    ] {
        assert_eq!(config[name], value, "{name}");
    }
    let generation = json("own/generation_config.json");
    let said = json!({
        "bos_token_id": 2, "eos_token_id": [3, 9], "pad_token_id": 0, "temperature": 0.5,
    });
    assert_eq!(generation, said);
    let generation = json("made/generation_config.json");
    let defaults = json!({
        "bos_token_id": 2, "do_sample": true, "eos_token_id": [3, 9], "max_new_tokens": 256,
        "no_repeat_ngram_size": 2, "pad_token_id": 0, "repetition_penalty": 1.0,
        "temperature": 0.7, "top_k": 40, "top_p": 0.75,
    });
    assert_eq!(generation, defaults);
    Base::load(&part("made")).unwrap();
}

/// PEFT and transformers open what was just written, if a Python with them is configured.
#[test]
fn peft_and_transformers_read_what_is_written() {
    let Some(python) = std::env::var_os("TOGI_PEFT_PYTHON") else {
        return eprintln!(
            "SKIPPED peft_and_transformers_read_what_is_written: TOGI_PEFT_PYTHON names no Python with torch and peft"
        );
    };
    let engine = fixtures::tiny();
    let special = Special::of(engine.config());
    for name in [
        "four",
        "rank-pattern",
        "alpha-pattern",
        "rank-stabilised",
        "one-layer",
        "full-names",
    ] {
        let lora = adapter_of(&engine, name);
        let folder = tempfile::tempdir().unwrap();
        let part = |name: &str| {
            let part = folder.path().join(name);
            std::fs::create_dir(&part).unwrap();
            part
        };
        base::write(&part("base"), engine.config(), |name, _| {
            let tensor = engine.base().tensor(name).unwrap();
            tensor.flatten_all().unwrap().to_vec1().unwrap()
        })
        .unwrap();
        write_adapter(&lora, &part("adapter"));
        merge::write_merged(&part("merged"), engine.base(), &lora, &special).unwrap();
        let logits = with_lora(&engine, &ids(), &lora);
        write_ours(&folder.path().join("ours.safetensors"), &ids(), &logits);
        let script = workspace().join("tests/reference/adapters.py");
        let output = Command::new(&python)
            .arg(script)
            .arg("--check")
            .arg(folder.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {text}");
        eprintln!("{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

fn write_ours(path: &Path, ids: &[u32], logits: &[f32]) {
    let ids: Vec<u8> = ids
        .iter()
        .flat_map(|&id| i64::from(id).to_le_bytes())
        .collect();
    let values: Vec<u8> = logits
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let rows = ids.len() / 8;
    let shape = vec![rows, logits.len() / rows];
    let views = [
        (
            "ids",
            TensorView::new(Dtype::I64, vec![rows], &ids).unwrap(),
        ),
        (
            "logits",
            TensorView::new(Dtype::F32, shape, &values).unwrap(),
        ),
    ];
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}
