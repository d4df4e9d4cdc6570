//! Input that is wrong: one sentence that names the field, the exit code that belongs to it, and nobody else disturbed.

use std::path::Path;

use togi_tests::{System, workspace};

/// Exit codes of `togi`.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const UNAVAILABLE: i32 = 4;

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Runs a command that must be refused and checks the exit code and what is said.
fn refused(system: &System, arguments: &[&str], codes: &[i32], says: &str) {
    let output = system.try_togi(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code().unwrap();
    assert!(
        codes.contains(&code),
        "togi {arguments:?} ended with {code}: {said}"
    );
    assert!(
        said.contains(says),
        "togi {arguments:?} does not say {says:?}: {said}"
    );
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn wrong_input_is_refused_by_name_and_disturbs_nobody() {
    let system = System::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let good = workspace().join("demo/new-records.jsonl");
    let good = good.to_str().unwrap();
    system.togi(&["prepare", good, "--name", "good"]);

    let empty = write(folder, "empty.jsonl", "");
    let no_records = write(folder, "none.json", "[]");
    let bad = write(folder, "bad.jsonl", "{\"instruction\": 5}\nnot json\n");
    let no_model = write(folder, "none.model", "this is no SentencePiece model");
    let recipe = |name: &str, text: &str| write(folder, &format!("{name}.toml"), text);
    let zero = recipe("zero", "name = \"zero\"\n[lora]\nrank = 0\n");
    let wide = recipe("wide", "name = \"wide\"\n[lora]\nrank = 100000\n");
    let nan = recipe("nan", "name = \"nan\"\nlearning_rate = nan\n");
    let negative = recipe("negative", "name = \"negative\"\nlearning_rate = -1.0\n");
    let nf4 = recipe("nf4", "name = \"nf4\"\nbase_precision = \"nf4\"\n");
    let unknown = recipe("unknown", "name = \"unknown\"\nlearning_speed = 1\n");
    let one = recipe("one", "name = \"one\"\nmax_steps = 1\n[lora]\nrank = 2\n");
    let train = |recipe: &str, rest: &[&str]| {
        let mut all = vec![
            "train",
            "--recipe",
            recipe,
            "--alias",
            "a",
            "--dataset",
            "good",
            "--watch",
        ];
        all.extend(rest);
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let refused_train = |recipe: &str, rest: &[&str], codes: &[i32], says: &str| {
        let words = train(recipe, rest);
        refused(
            &system,
            &words.iter().map(String::as_str).collect::<Vec<_>>(),
            codes,
            says,
        );
    };

    refused(
        &system,
        &["prepare", &empty, "--name", "x"],
        &[USAGE],
        "empty.jsonl: the file is empty",
    );
    refused(
        &system,
        &["prepare", &no_records, "--name", "x"],
        &[FAILED],
        "no records",
    );
    refused(
        &system,
        &["prepare", &bad, "--name", "x"],
        &[FAILED],
        "reject",
    );
    refused(
        &system,
        &["prepare", &bad, "--name", "x", "--on-bad-record", "fail"],
        &[FAILED],
        "1",
    );
    refused(
        &system,
        &["prepare", good, "--name", "a/b"],
        &[FAILED, USAGE],
        "name",
    );
    refused(
        &system,
        &["prepare", good, "--name", ".."],
        &[FAILED, USAGE],
        "name",
    );
    refused(
        &system,
        &["prepare", good, "--name", "x", "--tokenizer", &no_model],
        &[FAILED, USAGE],
        "sentencepiece",
    );
    refused(
        &system,
        &["prepare", good, "--name", "x", "--max-length", "1"],
        &[FAILED, USAGE],
        "max_length",
    );
    refused(
        &system,
        &["prepare", good, "--name", "x", "--base", "nobody"],
        &[FAILED, USAGE, NOT_FOUND],
        "nobody",
    );
    refused(
        &system,
        &["datasets", "show", "nothing"],
        &[NOT_FOUND],
        "nothing",
    );
    refused(
        &system,
        &["jobs", "show", "nothing"],
        &[NOT_FOUND],
        "nothing",
    );

    refused_train(&zero, &[], &[FAILED, USAGE], "rank");
    refused_train(&wide, &[], &[FAILED, USAGE], "rank");
    refused_train(&nan, &[], &[FAILED, USAGE], "learning_rate");
    refused_train(&negative, &[], &[FAILED, USAGE], "learning_rate");
    refused_train(&nf4, &[], &[FAILED, USAGE], "nf4");
    refused_train(&unknown, &[], &[FAILED, USAGE, 64], "learning_speed");
    refused_train(
        &one,
        &["--base", "nobody"],
        &[FAILED, USAGE, NOT_FOUND],
        "nobody",
    );

    let generate = |rest: &[&str], codes: &[i32], says: &str| {
        let mut all = vec!["generate", "--instruction", "誰ですか。"];
        all.extend(rest);
        refused(&system, &all, codes, says);
    };
    generate(&["--temperature", "nan"], &[FAILED, USAGE], "temperature");
    generate(&["--temperature=-1"], &[FAILED, USAGE], "temperature");
    generate(&["--top-p", "1.5"], &[FAILED, USAGE], "top_p");
    generate(&["--adapter", "nobody"], &[NOT_FOUND], "nobody");
    generate(
        &["--adapter", "../secrets"],
        &[FAILED, USAGE, NOT_FOUND],
        "adapter",
    );
    let long = "長い".repeat(4000);
    refused(
        &system,
        &["generate", "--raw", &long],
        &[FAILED, USAGE],
        "token",
    );

    // One key: the same request is the same job, another is refused.
    let same = |recipe: &str| {
        let words = train(recipe, &["--idempotency-key", "once", "--output", "json"]);
        system.try_togi(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert!(same(&one).status.success());
    assert!(same(&one).status.success());
    let jobs = system.togi_json(&["jobs", "list"]);
    let text = jobs.to_string();
    assert_eq!(text.matches("JOB_KIND_TRAIN").count(), 1, "{text}");
    let other = recipe("two", "name = \"two\"\nmax_steps = 2\n[lora]\nrank = 2\n");
    let output = same(&other);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("key"), "{said}");

    // Nobody was disturbed.
    system.togi(&[
        "generate",
        "--adapter",
        "a",
        "--instruction",
        "誰ですか。",
        "--max-new-tokens",
        "2",
    ]);
    assert!(!system.log().contains("panicked"), "{}", system.log());
}

#[test]
fn no_system_is_a_clear_answer() {
    let system = System::start(&[]);
    let output = system.try_togi(&["datasets", "list", "--endpoint", "http://127.0.0.1:1"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(UNAVAILABLE), "{said}");
    assert!(said.contains("127.0.0.1:1"), "{said}");
}
