//! Rows, tensors and answers are the same with services and without.

use std::fs;

use super::bench::Bench;
use super::services::Served;
use super::world::togi;

#[tokio::test(flavor = "multi_thread")]
async fn without_services_everything_is_the_same() {
    let served = Served::start().await;
    let bench = Bench::new();
    for file in ["records.jsonl", "recipe.toml"] {
        fs::copy(bench.path(file), served.path().join(file)).unwrap();
    }
    let prepared = served
        .run(
            &["prepare", "records.jsonl", "--name", "mine", "-o", "json"],
            "",
        )
        .await
        .expect(0);
    let rows = prepared.json()["rows"].clone();
    let train = [
        "train",
        "--recipe",
        "recipe.toml",
        "--dataset",
        "mine",
        "--alias",
        "mine",
        "--watch",
        "-o",
        "json",
    ];
    let updates = served.run(&train, "").await.expect(0).json_lines();
    let generation = updates.last().unwrap()["job"]["result"].as_str().unwrap();
    let tensors = served
        .path()
        .join("data/store/adapters")
        .join(generation)
        .join("adapter_model.safetensors");
    let report = bench.train("--out mine -o json").expect(0).json();
    assert_eq!(report["rows"].to_string(), rows.as_str().unwrap());
    assert_eq!(bench.tensors("mine"), fs::read(tensors).unwrap());

    let sampled = ["--seed", "5", "--temperature", "1.5"];
    let greedy = ["--greedy", "--no-repeat-ngram-size", "0"];
    let prompts = [["--instruction", "色は？"], ["--raw", "昔々\nある"]];
    for (chosen, prompt) in [&sampled[..], &greedy].into_iter().zip(prompts) {
        for adapter in [&[][..], &["--adapter", "mine"]] {
            let rest = [
                chosen,
                &prompt,
                adapter,
                &["--max-new-tokens", "24", "-o", "json"],
            ]
            .concat();
            let service = [&["generate"][..], &rest].concat();
            let service = served.run(&service, "").await.expect(0).json_lines();
            let local = [&["generate", "--base", "base"][..], &rest].concat();
            let local = togi(&bench.path(""), &local, "").expect(0).json_lines();
            assert_eq!(pieces(&local), pieces(&service));
        }
    }
    served.running.stop().await.unwrap();
}

/// Returns an answer's text and ids, joined from all pieces.
fn pieces(updates: &[serde_json::Value]) -> (String, Vec<serde_json::Value>) {
    let (mut text, mut ids) = (String::new(), Vec::new());
    for piece in updates.iter().map(|update| &update["piece"]) {
        text += piece["text"].as_str().unwrap_or_default();
        ids.extend(piece["tokenIds"].as_array().cloned().unwrap_or_default());
    }
    assert!(!ids.is_empty(), "{updates:?}");
    (text, ids)
}
