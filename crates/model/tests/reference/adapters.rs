//! Folders that PEFT wrote are read with its meaning, or refused by name; a folder that is written
//! here is PEFT's.

use serde::Deserialize;
use togi_model::{Engine, Lora, adapter};

use crate::fixtures::{self, assert_near, path, with_lora};

#[derive(Deserialize)]
struct Fixture {
    ids: Vec<u32>,
    taken: Vec<String>,
    refused: Vec<String>,
}

fn fixture() -> Fixture {
    fixtures::json("adapters.json")
}

fn read(engine: &Engine, name: &str) -> togi_model::Result<Lora> {
    adapter::from_folder(&path(&format!("adapters/{name}")), engine.config())
}

#[test]
fn adapters_of_peft_give_its_logits() {
    let Fixture { ids, taken, .. } = fixture();
    let logits = fixtures::tensors(&path("adapters.safetensors"));
    let engine = fixtures::tiny();
    assert_eq!(taken.len(), 10);
    for name in taken {
        let lora = read(&engine, &name).unwrap();
        let want = &logits[&name].1;
        assert_near(&with_lora(&engine, &ids, &lora), want, 1e-4, &name);
        // Written again it means the same, to us and by PEFT's rules.
        let files = adapter::to_files(&lora, "tiny").unwrap();
        let again = adapter::from_files(&files.config, &files.tensors, engine.config()).unwrap();
        assert_eq!(again.modules(), lora.modules(), "{name}");
        assert_eq!(again.values(), lora.values(), "{name}");
    }
}

#[test]
fn the_order_of_modules_means_nothing() {
    let engine = fixtures::tiny();
    let lora = read(&engine, "four").unwrap();
    let folder = path("adapters/four");
    let tensors = std::fs::read(folder.join(adapter::TENSORS_FILE)).unwrap();
    let text = std::fs::read(folder.join(adapter::CONFIG_FILE)).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    for _ in 0..4 {
        let modules = config["target_modules"].as_array_mut().unwrap();
        assert_eq!(modules.len(), 4);
        modules.rotate_left(1);
        let text = config.to_string();
        let other = adapter::from_files(text.as_bytes(), &tensors, engine.config()).unwrap();
        assert_eq!(other, lora);
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let engine = fixtures::tiny();
    let names = [
        ("dora", "use_dora"),
        ("saved-module", "modules_to_save"),
        ("bias", "bias"),
        ("lora-bias", "lora_bias"),
        ("pissa", "pissa"),
    ];
    assert_eq!(fixture().refused, names.map(|(folder, _)| folder));
    for (folder, name) in names {
        let error = read(&engine, folder).unwrap_err().to_string();
        assert!(error.contains(name), "{folder}: {error}");
    }
}

#[test]
fn a_folder_without_tensors_is_refused_by_its_files_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = path("adapters/four/adapter_config.json");
    std::fs::copy(config, folder.path().join(adapter::CONFIG_FILE)).unwrap();
    let error = adapter::from_folder(folder.path(), fixtures::tiny().config()).unwrap_err();
    assert!(error.to_string().contains(adapter::TENSORS_FILE), "{error}");
}
