//! Rows, tensors and answers are the same with services and without.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

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
    let several = [
        "-n=2",
        "--seed=5",
        "--min-new-tokens=24",
        "--frequency-penalty=-0.5",
        "--presence-penalty=1",
        "--logit-bias=9=2.5",
        "--logprobs=3",
        "--prompt-logprobs=1",
    ];
    let prompts = [
        ["--instruction", "色は？"],
        ["--raw", "昔々\nある"],
        ["--raw", "山"],
    ];
    let options = [&sampled[..], &greedy, &several];
    for (chosen, prompt) in options.into_iter().zip(prompts) {
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

/// Returns each answer's text, ids and log-probabilities, joined from all pieces.
fn pieces(updates: &[Value]) -> BTreeMap<u64, (String, Vec<Value>, Vec<Value>)> {
    let mut answers: BTreeMap<u64, (String, Vec<Value>, Vec<Value>)> = BTreeMap::new();
    for update in updates {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let (piece, choice) = (&update["piece"], update["choice"].as_u64());
        let (text, ids, logprobs) = answers.entry(choice.unwrap_or(0)).or_default();
        *text += piece["text"].as_str().unwrap_or_default();
        ids.extend(list(&piece["tokenIds"]));
        logprobs.extend(list(&update["promptLogprobs"]["tokens"]));
        logprobs.extend(list(&piece["logprobs"]));
    }
    assert!(
        answers.values().all(|answer| !answer.1.is_empty()),
        "{updates:?}"
    );
    answers
}
