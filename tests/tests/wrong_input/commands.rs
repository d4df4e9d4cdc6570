//! `commands.jsonl`, the table of commands that are refused: the words, the exit code, and a part
//! of the message. `@NAME` is a file of [`FILES`], and JOB the id of a job that has ended.

use serde_json::Value;

use crate::{RECIPE, Stage, cases};

/// Files that commands read.
const FILES: [(&str, &str); 6] = [
    ("@rank.toml", "[lora]\nrank = 0\n"),
    ("@key.toml", "learning_speed = 1\n"),
    ("@bad.jsonl", "{\"instruction\": 5}\nnot json\n"),
    ("@not.toml", "epochs = \n"),
    ("@pipeline.toml", "[prepares]\n"),
    (
        "@records.jsonl",
        "{\"instruction\": \"q\", \"output\": \"a\"}\n",
    ),
];

#[test]
fn every_command_of_the_table_is_refused_with_its_code_and_message() {
    let stage = Stage::new();
    let files = FILES.map(|(name, text)| (name, stage.file(&name[1..], text)));
    let trained = stage.try_train(RECIPE, &[]);
    assert!(trained.status.success(), "{trained:?}");
    let jobs = stage.system.togi_json(&["jobs", "list"]);
    let job = jobs["jobs"][0]["id"].as_str().unwrap();
    let generation = jobs["jobs"][0]["result"].as_str().unwrap();
    let promote = ["adapters", "promote", generation, "--alias", "mine"];
    stage.system.togi(&promote);
    let word = |word: &Value| {
        let word = word.as_str().unwrap();
        let file = files.iter().find(|(name, _)| *name == word);
        match file {
            Some((_, path)) => path.clone(),
            None => word.replace("JOB", job),
        }
    };
    let mut problems = Vec::new();
    for case in cases(include_str!("commands.jsonl")) {
        let words = case["togi"].as_array().unwrap().iter().map(word);
        let words: Vec<String> = words.collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let code = i32::try_from(case["exit"].as_i64().unwrap()).unwrap();
        problems.extend(stage.problem(&words, code, case["says"].as_str().unwrap()));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    stage.nobody_was_disturbed();
}
