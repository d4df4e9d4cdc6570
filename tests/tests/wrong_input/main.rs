//! Wrong input gets one sentence that names the field and the right exit code, and affects nothing
//! else.

// clippy.toml allows `unwrap` in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

mod calls;
mod commands;
mod messages;

use std::path::PathBuf;
use std::process::Output;

use tempfile::TempDir;
use togi_tests::{System, workspace};

/// Exit codes of `togi`.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const UNAVAILABLE: i32 = 4;
const REFUSED: i32 = 5;
const CONFIGURATION: i32 = 64;

const RECIPE: &str = "name = \"one\"\nmax_steps = 1\n[lora]\nrank = 2\n";

/// Returns the cases of a table, which has one as JSON in each line.
pub(crate) fn cases(table: &str) -> impl Iterator<Item = serde_json::Value> {
    let lines = table.lines();
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
}

/// A system with a data set `good`, and a folder for wrong files.
pub(crate) struct Stage {
    pub(crate) system: System,
    folder: TempDir,
    records: PathBuf,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let stage = Self {
            system: System::start(&[]),
            folder: tempfile::tempdir().unwrap(),
            records: workspace().join("demo/new-records.jsonl"),
        };
        let records = stage.records.to_str().unwrap();
        stage.system.togi(&["prepare", records, "--name", "good"]);
        stage
    }

    /// Writes a file and returns its path.
    pub(crate) fn file(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs a command that must be refused with this exit code and these words.
    pub(crate) fn refuses(&self, arguments: &[&str], code: i32, says: &str) {
        let problem = self.problem(arguments, code, says);
        assert_eq!(problem, None);
    }

    /// Returns how a command is not refused with this exit code and these words.
    pub(crate) fn problem(&self, arguments: &[&str], code: i32, says: &str) -> Option<String> {
        let output = self.system.try_togi(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        let got = output.status.code();
        let refused = got == Some(code) && said.contains(says) && !said.contains("panicked");
        let problem = || format!("togi {arguments:?} ended with {got:?}: {said}");
        (!refused).then(problem)
    }

    fn refuses_records(&self, file: &str, rest: &[&str], code: i32, says: &str) {
        let words = [&["prepare", file, "--name", "x"], rest].concat();
        self.refuses(&words, code, says);
    }

    fn train(&self, recipe: &str, rest: &[&str]) -> Vec<String> {
        let recipe = self.file("recipe.toml", recipe);
        let words = ["train", "--recipe", &recipe, "--alias", "a", "--dataset"];
        let words = [&words[..], &["good", "--watch"], rest].concat();
        words.into_iter().map(str::to_owned).collect()
    }

    pub(crate) fn try_train(&self, recipe: &str, rest: &[&str]) -> Output {
        let words = self.train(recipe, rest);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.system.try_togi(&words)
    }

    fn refuses_recipe(&self, recipe: &str, rest: &[&str], code: i32, says: &str) {
        let words = self.train(recipe, rest);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.refuses(&words, code, says);
    }

    fn refuses_question(&self, rest: &[&str], code: i32, says: &str) {
        let words = [&["generate", "--instruction", "誰ですか。"], rest].concat();
        self.refuses(&words, code, says);
    }

    /// Checks that the refused commands changed nothing: the data set exists and the base answers.
    pub(crate) fn nobody_was_disturbed(&self) {
        self.system.togi(&["datasets", "show", "good"]);
        let question = ["generate", "--instruction", "誰ですか。"];
        self.system
            .togi(&[&question[..], &["--max-new-tokens", "2"]].concat());
        let log = self.system.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[test]
fn wrong_records_names_and_tokenizers_are_refused_by_name() {
    let stage = Stage::new();
    let good = stage.records.to_str().unwrap();
    let bad = stage.file("bad.jsonl", "{\"instruction\": 5}\nnot json\n");
    let empty = stage.file("empty.jsonl", "");
    let none = stage.file("none.json", "[]");
    let no_model = stage.file("none.model", "this is no SentencePiece model");

    stage.refuses_records(&empty, &[], USAGE, "empty.jsonl: the file is empty");
    stage.refuses_records(&none, &[], FAILED, "no records");
    stage.refuses_records(&bad, &[], FAILED, "reject");
    let rest = ["--on-bad-record", "fail"];
    stage.refuses_records(&bad, &rest, FAILED, "record 1");
    stage.refuses(&["prepare", good, "--name", "a/b"], USAGE, "name");
    stage.refuses(&["prepare", good, "--name", ".."], USAGE, "name");
    let rest = ["--tokenizer", &no_model];
    stage.refuses_records(good, &rest, USAGE, "sentencepiece");
    stage.refuses_records(good, &["--max-length", "1"], USAGE, "max_length");
    stage.refuses_records(good, &["--base", "nobody"], NOT_FOUND, "nobody");
    stage.refuses_records("/no/such.jsonl", &[], NOT_FOUND, "/no/such.jsonl");
    stage.refuses(&["datasets", "show", "nothing"], NOT_FOUND, "nothing");
    stage.nobody_was_disturbed();
}

/// Files as other programs write them: the reason says which form it is and what to do.
#[test]
fn records_in_another_form_are_named() {
    let stage = Stage::new();
    let record = "{\"instruction\": \"問い\", \"output\": \"答え\"}\n";
    let utf16: Vec<u8> = format!("\u{feff}{record}")
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let mut tar = vec![0_u8; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    let turns = r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"},
        {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#;
    let turns = format!("\n{}\n", turns.replace('\n', " "));
    let files: [(&str, &[u8], &str); 14] = [
        ("turns.jsonl", turns.as_bytes(), "line 2: conversations: the conversation has several turns"),
        ("text.jsonl", b"{\"text\": \"t\"}", "Forms that are read: alpaca (instruction, output)"),
        ("data.json", b"{\"data\": [{\"instruction\": \"q\"}]}", "jq .data"),
        ("pandas.json", b"{\"instruction\": {\"0\": \"q\"}}", "orient=\"records\""),
        ("mixed.jsonl", b"{\"instruction\": \"q\", \"output\": \"a\"}\n{\"prompt\": \"q\", \"completion\": \"a\"}\n", "line 2: the record is prompt and completion"),
        ("utf16.jsonl", &utf16, "the file is UTF-16"),
        ("records.zip", b"PK\x03\x04\x14\0", "a zip archive"),
        ("records.tar", &tar, "a tar archive"),
        ("records.xz", b"\xfd7zXZ\0\0", "packed with xz"),
        (
            "records.csv",
            b"question,answer\nq,a\n",
            "its columns are question, answer (--column instruction=NAME",
        ),
        (
            "twice.jsonl",
            br#"{"instruction": "q", "output": "a", "output": "b"}"#,
            "output: the record has \"output\" twice",
        ),
        (
            "nan.jsonl",
            br#"{"instruction": "q", "output": NaN}"#,
            "output: NaN",
        ),
        (
            "messages.jsonl",
            br#"{"messages": [{"role": "user", "content": "q"}]}"#,
            "messages: there is no answer of the assistant",
        ),
        (
            "sjis.jsonl",
            b"{\"instruction\": \"\x96\xe2\x82\xa2\"}",
            "not UTF-8",
        ),
    ];
    for (name, bytes, says) in files {
        let file = stage.file(name, bytes);
        stage.refuses_records(&file, &[], FAILED, says);
    }
    let saved = stage.file("state.json", "{}");
    let saved = std::path::Path::new(&saved)
        .parent()
        .unwrap()
        .to_str()
        .unwrap();
    stage.refuses_records(saved, &[], REFUSED, "save_to_disk");
    let good = stage.records.to_str().unwrap();
    stage.refuses_records(good, &["--format", "xlsx"], USAGE, "--format");
    let chat = ["--format", "messages", "--column", "input=context"];
    stage.refuses_records(good, &chat, USAGE, "records.columns");
    stage.refuses_records(good, &["--split", "test"], USAGE, "records.split");
    stage.nobody_was_disturbed();
}

#[test]
fn wrong_recipes_and_jobs_are_refused_by_name() {
    let stage = Stage::new();
    let wrong = [
        ("[lora]\nrank = 0\n", "recipe.lora.rank"),
        ("[lora]\nrank = 100000\n", "recipe.lora.rank"),
        ("learning_rate = nan\n", "recipe.learning_rate"),
        ("learning_rate = -1.0\n", "recipe.learning_rate"),
        ("[lora]\ndropout = 1.0\n", "recipe.lora.dropout"),
        ("batch_size = 0\n", "recipe.batch_size"),
        ("max_loss_rise = -1.0\n", "recipe.max_loss_rise"),
        ("base_precision = \"int3\"\n", "recipe.base_precision"),
    ];
    for (recipe, field) in wrong {
        stage.refuses_recipe(recipe, &[], USAGE, field);
    }
    stage.refuses_recipe("learning_speed = 1\n", &[], CONFIGURATION, "learning_speed");
    stage.refuses_recipe(RECIPE, &["--base", "nobody"], NOT_FOUND, "nobody");
    let recipe = stage.file("one.toml", RECIPE);
    let train = ["train", "--recipe", &recipe, "--alias", "a"];
    let words = [&train[..], &["--dataset", "nothing"]].concat();
    stage.refuses(&words, NOT_FOUND, "nothing");
    stage.refuses(&["jobs", "show", "nothing"], NOT_FOUND, "nothing");
    stage.refuses(&["jobs", "cancel", "nothing"], NOT_FOUND, "nothing");
    stage.nobody_was_disturbed();
}

#[test]
fn wrong_policies_and_gates_are_refused_by_name() {
    let stage = Stage::new();
    let held_out = stage.records.to_str().unwrap().to_owned();
    let prepare = ["prepare", &held_out, "--name", "held-out"];
    let share = ["--validation-share", "0.1"];
    stage.system.togi(&[&prepare[..], &share].concat());
    let policy = "name = \"p\"\ndataset = \"held-out\"\nbase = \"demo\"\nalias = \"a\"\n";
    let apply = |text: &str| stage.file("policy.toml", text);
    let wrong = [
        (
            "[gate]\nloss_tolerance = -1.0\n",
            USAGE,
            "gate.loss_tolerance",
        ),
        ("[gate]\nleast_right = 1.5\n", USAGE, "gate.least_right"),
        (
            "[gate]\nquestions = \"none.jsonl\"\n",
            NOT_FOUND,
            "none.jsonl",
        ),
        (
            "[gate]\nquestions = \"policy.toml\"\n",
            USAGE,
            "gate.questions has no question in line 1",
        ),
        ("[gate]\nloss = 1\n", CONFIGURATION, "loss"),
        (
            "[trigger]\nschedule = \"often\"\n",
            USAGE,
            "policy.trigger.schedule",
        ),
        ("recipe = \"none.toml\"\n", NOT_FOUND, "none.toml"),
    ];
    for (rest, code, says) in wrong {
        let file = apply(&format!("{policy}{rest}"));
        stage.refuses(&["policies", "apply", &file], code, says);
    }
    let unheld = apply(&policy.replace("held-out", "good"));
    stage.refuses(&["policies", "apply", &unheld], REFUSED, "validation rows");
    stage.refuses(&["policies", "run", "nobody"], NOT_FOUND, "policy");

    let questions = "{\"instruction\":\"誰ですか。\",\"output\":\"私です。\"}\n";
    stage.file("questions.jsonl", questions);
    let gated = apply(&format!(
        "{policy}[gate]\nquestions = \"questions.jsonl\"\n"
    ));
    let kept = stage.system.togi_json(&["policies", "apply", &gated]);
    let upload = kept["policy"]["gate"]["questions"].as_str().unwrap();
    assert_eq!(upload.len(), 64, "{kept}");
    let shown = stage.system.togi(&["policies", "show", "p"]);
    assert!(
        shown.contains("at new revisions") && shown.contains(&upload[..12]),
        "{shown}"
    );
    stage.nobody_was_disturbed();
}

#[test]
fn an_idempotency_key_stands_for_one_request() {
    let stage = Stage::new();
    let key = ["--idempotency-key", "once"];
    for _ in 0..2 {
        let output = stage.try_train(RECIPE, &key);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
    let jobs = stage.system.togi_json(&["jobs", "list"]).to_string();
    assert_eq!(jobs.matches("JOB_KIND_TRAIN").count(), 1, "{jobs}");
    let other = RECIPE.replace("max_steps = 1", "max_steps = 2");
    stage.refuses_recipe(&other, &key, FAILED, "idempotency_key");
    // The alias serves the only job's result.
    let question = ["generate", "--adapter", "a", "--instruction", "誰ですか。"];
    stage
        .system
        .togi(&[&question[..], &["--max-new-tokens", "2"]].concat());
    stage.nobody_was_disturbed();
}

#[test]
fn wrong_options_and_prompts_are_refused_by_name() {
    let stage = Stage::new();
    stage.refuses_question(&["--temperature", "nan"], USAGE, "temperature");
    stage.refuses_question(&["--temperature=-1"], USAGE, "temperature");
    stage.refuses_question(&["--top-p", "1.5"], USAGE, "top_p");
    stage.refuses_question(&["--repetition-penalty", "0"], USAGE, "repetition_penalty");
    stage.refuses_question(&["--adapter", "nobody"], NOT_FOUND, "nobody");
    stage.refuses_question(&["--adapter", "../secrets"], USAGE, "adapter");
    let long = "長い".repeat(4000);
    stage.refuses(&["generate", "--raw", &long], USAGE, "token");
    stage.nobody_was_disturbed();
}

#[test]
fn no_system_is_a_clear_answer() {
    let system = System::start(&[]);
    let output = system.try_togi(&["datasets", "list", "--endpoint", "http://127.0.0.1:1"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(UNAVAILABLE), "{said}");
    assert!(said.contains("127.0.0.1:1"), "{said}");
}
