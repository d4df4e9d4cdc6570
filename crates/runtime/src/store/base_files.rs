//! The files of a base, by their names: which ones belong to it, and which one a folder lacks.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

const CONFIG: &str = "config.json";
const TOKENIZERS: [&str; 2] = ["spiece.model", "tokenizer.model"];
/// Weights, the better form first: its name alone, which may also be the index's.
const SAFE: &str = "model.safetensors";
const TORCH: &str = "pytorch_model.bin";

/// Returns whether a file of this name belongs to a base: configuration, weights, tokenizer.
fn is_base_file(name: &str) -> bool {
    matches!(
        name,
        CONFIG
            | "generation_config.json"
            | "spiece.model"
            | "tokenizer.model"
            | "tokenizer_config.json"
            | "tokenizer.json"
            | "added_tokens.json"
            | "special_tokens_map.json"
    ) || [".safetensors", ".safetensors.index.json"]
        .iter()
        .any(|end| name.ends_with(end))
        || (name.starts_with("pytorch_model")
            && (name.ends_with(".bin") || name.ends_with(".bin.index.json")))
}

/// Returns whether a file is needed, of a base with these files: weights in torch's form are not
/// where there are others.
pub(super) fn is_wanted(name: &str, all: &[String]) -> bool {
    let safe = all.iter().any(|name| name.ends_with(".safetensors"));
    is_base_file(name) && !(safe && name.starts_with("pytorch_model"))
}

/// Returns the first file that a base's folder lacks; `None` if it has all that a base must have.
pub(super) fn lacking(folder: &Path) -> Option<String> {
    let is_there = |name: &str| folder.join(name).exists();
    if !is_there(CONFIG) {
        return Some(CONFIG.to_owned());
    }
    if let Some(file) = lacking_weights(folder) {
        return Some(file);
    }
    let has_tokenizer = TOKENIZERS.into_iter().any(is_there);
    (!has_tokenizer).then(|| TOKENIZERS[0].to_owned())
}

/// Returns whether a folder has all that a base must have, with its weights as safetensors.
pub(super) fn is_enough(folder: &Path) -> bool {
    lacking(folder).is_none() && has_form(folder, SAFE)
}

/// As a base is read: the first form that is there decides, and its index names the other files.
fn lacking_weights(folder: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Some(form) = [SAFE, TORCH]
        .into_iter()
        .find(|form| has_form(folder, form))
    else {
        return Some(SAFE.to_owned());
    };
    if folder.join(form).exists() {
        return None;
    }
    let index = fs::read(folder.join(index_of(form))).ok()?;
    // An index that cannot be read is the reader's to refuse.
    let Index { weight_map } = serde_json::from_slice(&index).ok()?;
    let mut files = weight_map.into_values();
    files.find(|file| !folder.join(file).exists())
}

fn has_form(folder: &Path, form: &str) -> bool {
    folder.join(form).exists() || folder.join(index_of(form)).exists()
}

fn index_of(form: &str) -> String {
    format!("{form}.index.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_a_base_with_its_configuration_weights_and_tokenizer() {
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        let table: [(&[&str], Option<&str>, bool); 7] = [
            (&[], Some("config.json"), false),
            (&["config.json"], Some("model.safetensors"), false),
            (&["config.json", SAFE], Some("spiece.model"), false),
            (&["config.json", SAFE, "tokenizer.model"], None, true),
            (&["config.json", TORCH, "spiece.model"], None, false),
            (
                &[
                    "config.json",
                    "spiece.model",
                    "model.safetensors.index.json",
                    "model-1.safetensors",
                ],
                Some("model-2.safetensors"),
                false,
            ),
            (
                &[
                    "config.json",
                    "spiece.model",
                    "model.safetensors.index.json",
                    "model-1.safetensors",
                    "model-2.safetensors",
                ],
                None,
                true,
            ),
        ];
        for (names, lacks, enough) in table {
            let folder = tempfile::tempdir().unwrap();
            for name in names {
                fs::write(folder.path().join(name), index).unwrap();
            }
            assert_eq!(lacking(folder.path()).as_deref(), lacks, "{names:?}");
            assert_eq!(is_enough(folder.path()), enough, "{names:?}");
        }
    }
}
