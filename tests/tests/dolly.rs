//! Real data: all of Dolly-ja is prepared by a running system, read back, and trained on with a
//! small random base. The published adapter's files are compared with PEFT's format. Needs
//! TOGI_DOLLY_JA and TOGI_TOKENIZERS.

// clippy.toml allows `unwrap` in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use togi_tests::{System, run_python};

const RECIPE: &str = r#"
name = "short"
batch_size = 2
max_steps = 2
learning_rate = 1e-4
[lora]
rank = 8
alpha = 32
dropout = 0.1
target_modules = ["query_key_value", "dense_4h_to_h"]
"#;

/// Returns the data's paths, or why the test is skipped.
fn data() -> Result<(PathBuf, PathBuf), String> {
    let path = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .ok_or_else(|| format!("{name} is not set"))
    };
    let records = path("TOGI_DOLLY_JA")?;
    let tokenizer = path("TOGI_TOKENIZERS")?.join("unigram-32k-bytefallback.model");
    for file in [&records, &tokenizer] {
        if !file.is_file() {
            return Err(format!("{} is missing", file.display()));
        }
    }
    Ok((records, tokenizer))
}

/// Writes a random base with the tokenizer's vocabulary.
fn write_base(folder: &Path, tokenizer: &Path) {
    let config = br#"{"architectures":["GPTNeoXForCausalLM"],"model_type":"gpt_neox","vocab_size":32000,
        "hidden_size":32,"num_hidden_layers":2,"num_attention_heads":2,"intermediate_size":64,"hidden_act":"gelu",
        "rotary_pct":1.0,"rotary_emb_base":10000,"max_position_embeddings":2048,"layer_norm_eps":1e-5,
        "use_parallel_residual":false,"tie_word_embeddings":false,"bos_token_id":2,"eos_token_id":3}"#;
    let config = togi_model::Config::from_json(config).unwrap();
    togi_model::base::write_random(folder, &config, 1).unwrap();
    std::fs::copy(tokenizer, folder.join("spiece.model")).unwrap();
}

#[test]
fn dolly_ja_goes_from_records_to_a_published_adapter() {
    let (records, tokenizer) = match data() {
        Ok(paths) => paths,
        Err(reason) => {
            return eprintln!(
                "SKIPPED dolly_ja_goes_from_records_to_a_published_adapter: {reason}"
            );
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("random");
    std::fs::create_dir(&base).unwrap();
    write_base(&base, &tokenizer);
    let url = url::Url::from_directory_path(&base).unwrap();
    let system = System::start(&["--base", &format!("random={url}")]);

    let records = records.to_str().unwrap();
    let tokenizer = tokenizer.to_str().unwrap();
    let prepare = [
        "prepare",
        records,
        "--name",
        "dolly-ja",
        "--tokenizer",
        tokenizer,
    ];
    system.togi(&prepare);
    let dataset = system.togi_json(&["datasets", "show", "dolly-ja"]);
    assert_eq!(dataset["recordsRead"], "15015", "{dataset}");
    let number = |field: &str| {
        dataset[field]
            .as_str()
            .unwrap_or("0")
            .parse::<u64>()
            .unwrap()
    };
    assert_eq!(number("rows") + number("rejected"), 15_015, "{dataset}");
    assert_eq!(number("tokens"), 2_499_968, "{dataset}");

    // The repeated request has the same digest and adds nothing to the store.
    let before = objects(&system, "datasets");
    system.togi(&prepare);
    assert_eq!(
        system.togi_json(&["datasets", "show", "dolly-ja"])["digest"],
        dataset["digest"]
    );
    assert_eq!(objects(&system, "datasets"), before);

    let digest = dataset["digest"].as_str().unwrap();
    let shards: Vec<String> = before
        .iter()
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "parquet")
        })
        .map(|path| path.to_str().unwrap().to_owned())
        .collect();
    let arguments: Vec<&str> = [system.endpoint.as_str(), digest]
        .into_iter()
        .chain(shards.iter().map(String::as_str))
        .collect();
    let seen: Value = serde_json::from_str(&run_python("flight_client.py", &arguments)).unwrap();
    assert_eq!(seen["flight_rows"], number("rows"), "{seen}");
    assert_eq!(seen["tokens"], 2_499_968, "{seen}");
    for field in [
        "same_rows",
        "is_shuffled",
        "repeats",
        "resumes",
        "lengths_agree",
    ] {
        assert_eq!(seen[field], true, "{field}: {seen}");
    }

    let recipe = folder.path().join("recipe.toml");
    std::fs::write(&recipe, RECIPE).unwrap();
    let recipe = recipe.to_str().unwrap();
    system.togi(&[
        "train",
        "--recipe",
        recipe,
        "--base",
        "random",
        "--dataset",
        "dolly-ja",
        "--alias",
        "dolly",
        "--watch",
    ]);
    let adapter = system.togi_json(&["adapters", "show", "dolly"]);
    let generation = adapter["generation"].as_str().unwrap();
    let published = system.data().join("store/adapters").join(generation);
    let text = std::fs::read_to_string(published.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!(
        config["target_modules"],
        serde_json::json!(["dense_4h_to_h", "query_key_value"])
    );
    peft_loads(&base, &published);
}

/// Returns the files below a folder of the store.
fn objects(system: &System, folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![system.data().join("store").join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path)
            } else {
                found.push(path)
            }
        }
    }
    found.sort();
    found
}

/// Opens the folder with PEFT's own loader, if a Python with torch, transformers and peft is
/// configured.
fn peft_loads(base: &Path, adapter: &Path) {
    let Some(python) = std::env::var_os("TOGI_PEFT_PYTHON") else {
        return eprintln!(
            "SKIPPED PEFT's own loader: TOGI_PEFT_PYTHON names no Python with torch and peft"
        );
    };
    let script = togi_tests::workspace().join("tests/strangers/peft_loads.py");
    let output = Command::new(python)
        .arg(script)
        .arg(base)
        .arg(adapter)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "PEFT refuses the adapter: {errors}"
    );
}
