//! `--adapter` by alias, by generation and as a folder: the same adapter in every command.

use std::fs;

use serde_json::Value;

use super::services::Served;

/// The base that the services call `demo`.
const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/base");

/// Publishes an adapter as `mine` and returns its generation.
async fn published(served: &Served) -> String {
    let record = |n: usize| format!("{{\"instruction\":\"{n}番の色は？\",\"output\":\"赤\"}}\n");
    let records: String = (0..16).map(record).collect();
    fs::write(served.path().join("records.jsonl"), records).unwrap();
    served.prepare("mine").await;
    let recipe = "max_steps = 2\nlearning_rate = 0.01\n[lora]\nrank = 2\n";
    fs::write(served.path().join("recipe.toml"), recipe).unwrap();
    let train = "train --recipe recipe.toml --dataset mine --alias mine --watch -o json";
    let words: Vec<&str> = train.split(' ').collect();
    let watched = served.run(&words, "").await.expect(0).json_lines();
    let generation = watched.last().unwrap()["job"]["result"].clone();
    generation.as_str().unwrap().to_owned()
}

/// The words of a command that writes the logits of `ids.jsonl`.
fn writing(out: &str) -> [&str; 7] {
    ["logits", "--base", BASE, "--ids", "ids.jsonl", "--out", out]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_a_generation_and_a_folder_are_one_adapter_in_every_command() {
    let served = Served::start().await;
    let generation = published(&served).await;
    fs::write(served.path().join("ids.jsonl"), "[5, 6, 7, 8]\n").unwrap();
    let folder = format!("data/store/adapters/{generation}");
    let mut results = Vec::new();
    for (at, adapter) in ["mine", &generation, &generation[..8], &folder]
        .into_iter()
        .enumerate()
    {
        let (merged, logits) = (format!("merged-{at}"), format!("logits-{at}"));
        let export = ["export", "--merged", "--base", BASE, "--out", &merged];
        let write = writing(&logits);
        let generate = [
            "generate",
            "--base",
            BASE,
            "--raw",
            "1番",
            "--greedy",
            "--max-new-tokens",
            "4",
            "-o",
            "json",
        ];
        let mut answer = String::new();
        for words in [&export[..], &write, &generate] {
            let words = [words, &["--adapter", adapter]].concat();
            answer = served.run(&words, "").await.expect(0).stdout;
        }
        let tokens: Vec<Value> = answer
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["piece"].clone())
            .collect();
        let file = |name: &str| fs::read(served.path().join(name)).unwrap();
        let merged = file(&format!("{merged}/model.safetensors"));
        let out = format!("trained-{at}");
        let train = "train --local --recipe recipe.toml --records records.jsonl --base";
        let mut words: Vec<&str> = train.split(' ').collect();
        words.extend([BASE, "--init-adapter", adapter, "--out", &out]);
        served.run(&words, "").await.expect(0);
        let trained = file(&format!("{out}/adapter_model.safetensors"));
        results.push((merged, file(&logits), tokens, trained));
    }
    for (at, result) in results.iter().enumerate() {
        assert!(*result == results[0], "{at}");
    }
    // The same names without --base: inference answers.
    let mut answers = Vec::new();
    for adapter in ["mine", &generation, &generation[..8]] {
        let ask = "generate --raw 1番 --greedy --max-new-tokens 4 -o json --adapter";
        let words: Vec<&str> = ask.split(' ').chain([adapter]).collect();
        let lines = served.run(&words, "").await.expect(0).json_lines();
        let started = lines[0]["started"]["generation"].clone();
        assert_eq!(started, generation.as_str(), "{adapter}");
        answers.push(
            lines
                .iter()
                .map(|line| line["piece"].clone())
                .collect::<Vec<_>>(),
        );
    }
    assert!(
        answers.iter().all(|tokens| *tokens == results[0].2),
        "{answers:?}"
    );
    let unknown = "generate --raw 1番 --adapter 0123456789";
    let words: Vec<&str> = unknown.split(' ').collect();
    served.run(&words, "").await.expect(3);
    served.run(&writing("plain"), "").await.expect(0);
    let plain = fs::read(served.path().join("plain")).unwrap();
    assert!(plain != results[0].1, "the adapter counts");

    // An unknown name is the registry's to refuse, and another base the adapter's.
    let unknown = [&writing("x")[..], &["-a", "other"]].concat();
    let ran = served.run(&unknown, "").await.expect(3);
    assert!(ran.stderr.contains("other"), "{}", ran.stderr);
    let other = served.path().join("other-base");
    fs::create_dir(&other).unwrap();
    for entry in fs::read_dir(BASE).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, other.join(path.file_name().unwrap())).unwrap();
    }
    let config = fs::read_to_string(other.join("config.json")).unwrap();
    fs::write(other.join("config.json"), format!("{config}\n")).unwrap();
    let over = [
        "export",
        "--merged",
        "--base",
        "other-base",
        "-a",
        "mine",
        "--out",
        "y",
    ];
    let ran = served.run(&over, "").await.expect(5);
    assert!(
        ran.stderr.contains("trained over the base"),
        "{}",
        ran.stderr
    );
    served.running.stop().await.unwrap();
}
