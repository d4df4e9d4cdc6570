//! Folders that are written for other programs, as those programs open them.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use togi_model::Base;

use super::bench::Bench;

/// Pythons with transformers 5, and with transformers 4 and CTranslate2.
const PYTHONS: [&str; 2] = ["TOGI_PEFT_PYTHON", "TOGI_TRANSFORMERS_4_PYTHON"];
/// Tokens of a greedy answer.
const GREEDY: usize = 24;

fn exported() -> Bench {
    let bench = Bench::new();
    bench.adapter("adapter");
    bench
        .run("export --merged --base base --adapter adapter --out merged")
        .expect(0);
    bench
}

#[test]
fn an_exported_folder_has_the_tokenizer_that_transformers_loads() {
    let bench = exported();
    bench
        .run("quantize --base base --precision nf4 --out packed")
        .expect(0);
    for folder in ["merged", "packed"] {
        let json = |name: &str| -> Value {
            serde_json::from_slice(&fs::read(bench.path(folder).join(name)).unwrap()).unwrap()
        };
        let tokenizer = json("tokenizer.json");
        assert_eq!(tokenizer["model"]["type"], "Unigram", "{folder}");
        assert_eq!(tokenizer["model"]["byte_fallback"], true, "{folder}");
        let settings = json("tokenizer_config.json");
        assert_eq!(settings["tokenizer_class"], "PreTrainedTokenizerFast");
        assert_eq!(settings["split_special_tokens"], true, "{folder}");
        let roles = json!({
            "bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]", "unk_token": "[UNK]",
        });
        assert_eq!(json("special_tokens_map.json"), roles, "{folder}");
        // Togi itself takes what it wrote.
        bench
            .run(&format!(
                "tokenize --base {folder} records.jsonl --template"
            ))
            .expect(0);
        Base::load(&bench.path("merged")).unwrap();
    }
    let generation = fs::read(bench.path("merged/generation_config.json")).unwrap();
    let generation: Value = serde_json::from_slice(&generation).unwrap();
    assert_eq!(generation["eos_token_id"], 3);
    assert_eq!(generation["pad_token_id"], 0);
}

/// Writes what Togi computes over a folder: logits of some ids, and a greedy answer.
fn write_ours(bench: &Bench, path: &Path) {
    let tokenizer = bench.tokenizer();
    let prompt = tokenizer.encode("### 指示:<NL>山は？<NL><NL>### 回答:<NL>");
    let base = Base::load(&bench.path("merged")).unwrap();
    let engine = togi_model::Engine::new(std::sync::Arc::new(base)).unwrap();
    let logits = engine.logits(&prompt, None).unwrap();
    let mut ids = prompt.clone();
    for _ in 0..GREEDY {
        let logits = engine.logits(&ids, None).unwrap();
        let last = &logits[logits.len() - logits.len() / ids.len()..];
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b]));
        ids.push(best.unwrap() as u32);
    }
    let ours = json!({
        "ids": prompt, "logits": logits, "prompt": prompt, "greedy": ids[prompt.len()..],
    });
    fs::write(path, ours.to_string()).unwrap();
}

/// transformers 4 and 5 open what was just written, and CTranslate2 converts it, where a Python
/// with them is configured.
#[test]
fn transformers_and_ctranslate2_open_an_exported_folder_with_our_ids_and_logits() {
    let bench = exported();
    let ours = bench.path("ours.json");
    write_ours(&bench, &ours);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for name in PYTHONS {
        let Some(python) = std::env::var_os(name) else {
            eprintln!("SKIPPED transformers over an exported folder: {name} names no Python");
            continue;
        };
        for words in [vec!["tokenizer"], vec!["model", ours.to_str().unwrap()]] {
            let output = Command::new(&python)
                .arg(root.join("tests/reference/loaded.py"))
                .arg(words[0])
                .arg(bench.path("merged"))
                .args(&words[1..])
                .env("HF_HUB_OFFLINE", "1")
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name} {}: {text}", words[0]);
            eprintln!("{name}: {}", String::from_utf8_lossy(&output.stdout));
        }
    }
}
