//! The table of commands that are refused: the words, the exit code, and what is said.

use crate::{CONFIGURATION, FAILED, NOT_FOUND, RECIPE, REFUSED, Stage, USAGE};

/// A command's words, its exit code, and a part of its message. `@NAME` is a file of [`FILES`], and
/// JOB the id of a job that has ended.
type Case = (&'static [&'static str], i32, &'static str);

/// Files that commands read.
const FILES: [(&str, &str); 5] = [
    ("rank.toml", "[lora]\nrank = 0\n"),
    ("key.toml", "learning_speed = 1\n"),
    ("not.toml", "epochs = \n"),
    ("pipeline.toml", "[prepares]\n"),
    (
        "records.jsonl",
        "{\"instruction\": \"q\", \"output\": \"a\"}\n",
    ),
];

const ONE_OF: &str = "neither a file nor one of the recipes demo-cpu, rinna-3.6b-article, \
                      rinna-3.6b-a100, rinna-3.6b-bf16; did you mean \"demo-cpu\"?";

const COMMANDS: &[Case] = &[
    (&["bake"], USAGE, "unrecognized subcommand 'bake'"),
    (&["jobs", "list", "-o", "xml"], USAGE, "xml"),
    (
        &["events", "job.exploded"],
        USAGE,
        "it is one of job.queued",
    ),
    (&["run", "none.toml"], NOT_FOUND, "none.toml"),
    (&["run", "@pipeline.toml"], CONFIGURATION, "prepares"),
    // Jobs.
    (
        &["jobs", "show", "abc"],
        NOT_FOUND,
        "or by at least 4 of its first characters",
    ),
    (
        &["jobs", "show", "Not a job"],
        USAGE,
        "job must have 1 to 63 characters",
    ),
    (
        &["jobs", "watch", "nobody"],
        NOT_FOUND,
        "there is no job \"nobody\"",
    ),
    (&["jobs", "cancel", "JOB"], REFUSED, "has ended already"),
    // Adapters and aliases.
    (
        &["adapters", "show", "9b60"],
        NOT_FOUND,
        "named by at least 8 of its digits",
    ),
    (
        &["adapters", "show", "mien"],
        NOT_FOUND,
        "did you mean \"mine\"?",
    ),
    (
        &["adapters", "show", "9b60…"],
        USAGE,
        "adapter must have 1 to 63 characters",
    ),
    (
        &["adapters", "promote", "0123456789", "--alias", "b"],
        NOT_FOUND,
        "adapter \"0123456789\" does not exist",
    ),
    (
        &["adapters", "rollback", "nothing"],
        NOT_FOUND,
        "there is no alias \"nothing\"",
    ),
    (
        &["adapters", "rollback", "mine"],
        REFUSED,
        "alias \"mine\" named nothing before",
    ),
    // Data sets.
    (
        &["datasets", "show", "goood"],
        NOT_FOUND,
        "no data set \"goood\"; did you mean \"good\"?",
    ),
    (
        &["prepare", "@records.jsonl", "--name", "日本語"],
        USAGE,
        "name must have 1 to 63 characters",
    ),
    (
        &["prepare", "@records.jsonl", "--validation-share", "1.5"],
        USAGE,
        "settings.validation_share",
    ),
    (
        &["prepare", "@records.jsonl", "--max-length", "1"],
        USAGE,
        "settings.max_length",
    ),
    (
        &["prepare", "@records.jsonl", "--learn", "most"],
        USAGE,
        "answer",
    ),
    (
        &["prepare", "@records.jsonl", "--column", "input"],
        USAGE,
        "it looks like input=context",
    ),
    (
        &["prepare", "@records.jsonl", "--base", "dmo"],
        NOT_FOUND,
        "dmo",
    ),
    (
        &["prepare", "--source", "nowhere", "--name", "x"],
        NOT_FOUND,
        "nowhere",
    ),
    (
        &["prepare", "--hub", "huggingface.co/x", "--name", "x"],
        USAGE,
        "hf://datasets/",
    ),
    // Training.
    (
        &[
            "train",
            "--recipe",
            "demo-cp",
            "--dataset",
            "good",
            "--alias",
            "a",
        ],
        NOT_FOUND,
        ONE_OF,
    ),
    (
        &[
            "train",
            "--recipe",
            "recipes/none.toml",
            "--dataset",
            "good",
            "--alias",
            "a",
        ],
        NOT_FOUND,
        "recipes/none.toml",
    ),
    (
        &[
            "train",
            "--recipe",
            "@key.toml",
            "--dataset",
            "good",
            "--alias",
            "a",
        ],
        CONFIGURATION,
        "learning_speed",
    ),
    (
        &[
            "train",
            "--recipe",
            "@not.toml",
            "--dataset",
            "good",
            "--alias",
            "a",
        ],
        CONFIGURATION,
        "not.toml:1",
    ),
    (
        &[
            "train",
            "--recipe",
            "@rank.toml",
            "--dataset",
            "good",
            "--alias",
            "a",
        ],
        USAGE,
        "recipe.lora.rank",
    ),
    (
        &[
            "train",
            "--recipe",
            "demo-cpu",
            "--dataset",
            "goood",
            "--alias",
            "a",
        ],
        NOT_FOUND,
        "dataset \"goood\" does not exist; did you mean \"good\"?",
    ),
    (
        &[
            "train",
            "--recipe",
            "demo-cpu",
            "--dataset",
            "good",
            "--alias",
            "A/B",
        ],
        USAGE,
        "alias must have 1 to 63 characters",
    ),
    (
        &[
            "train",
            "--recipe",
            "demo-cpu",
            "--dataset",
            "good",
            "--alias",
            "a",
            "--base",
            "dmo",
        ],
        NOT_FOUND,
        "configured are: demo; did you mean \"demo\"?",
    ),
    (
        &["train", "--recipe", "demo-cpu", "--dataset", "good"],
        USAGE,
        "--alias",
    ),
    // Policies.
    (
        &["policies", "show", "nightly"],
        NOT_FOUND,
        "policy \"nightly\" does not exist",
    ),
    (
        &["policies", "delete", "nightly"],
        NOT_FOUND,
        "policy \"nightly\" does not exist",
    ),
    (
        &["policies", "run", "nightly"],
        NOT_FOUND,
        "policy \"nightly\" does not exist",
    ),
    // Answers.
    (
        &["generate", "--adapter", "mine"],
        USAGE,
        "a prompt is missing: --instruction, --raw, or text on standard input",
    ),
    (&["generate", "--raw", " "], USAGE, "raw: must not be empty"),
    (
        &["generate", "--raw", "q", "--adapter", "mien"],
        NOT_FOUND,
        "no alias and no generation is named \"mien\"; did you mean \"mine\"?",
    ),
    (
        &["generate", "--raw", "q", "--max-new-tokens", "99999"],
        USAGE,
        "options.max_new_tokens: must be from 1 to 512, the model's longest sequence, not 99999",
    ),
    (
        &["generate", "--raw", "q", "--max-new-tokens", "0"],
        USAGE,
        "options.max_new_tokens: must be at least 1",
    ),
    (
        &["generate", "--raw", "q", "--temperature=-1"],
        USAGE,
        "options.temperature: must be 0, which is greedy, or at least 1.2e-38",
    ),
    (
        &["generate", "--raw", "q", "--top-p", "1.5"],
        USAGE,
        "options.top_p",
    ),
    (
        &["generate", "--raw", "q", "-n", "9"],
        USAGE,
        "options.n: must be from 1 to 8, not 9",
    ),
    (
        &["generate", "--raw", "q", "--logprobs", "21"],
        USAGE,
        "options.logprobs: must be from 0 to 20, not 21",
    ),
    (
        &["generate", "--raw", "q", "--presence-penalty", "3"],
        USAGE,
        "options.presence_penalty",
    ),
    (
        &["generate", "--raw", "q", "--logit-bias", "999999=1"],
        USAGE,
        "options.logit_bias: 999999 is no token of the vocabulary",
    ),
    (
        &["generate", "--raw", "q", "--stop", ""],
        USAGE,
        "options.stop",
    ),
    (
        &["generate", "--raw", "q", "--temperature", "warm"],
        USAGE,
        "--temperature",
    ),
    (&["ask", "none.txt"], NOT_FOUND, "none.txt"),
    (
        &["tokenize", "--base", "none", "@records.jsonl"],
        NOT_FOUND,
        "none",
    ),
    (
        &["prepare", "@rank.toml", "--name", "x"],
        FAILED,
        "all 2 records were rejected",
    ),
];

#[test]
fn every_command_of_the_table_is_refused_with_its_code_and_message() {
    let stage = Stage::new();
    let files = FILES.map(|(name, text)| (format!("@{name}"), stage.file(name, text)));
    let trained = stage.try_train(RECIPE, &["--alias", "mine"]);
    assert!(trained.status.success(), "{trained:?}");
    let jobs = stage.system.togi_json(&["jobs", "list"]);
    let job = jobs["jobs"][0]["id"].as_str().unwrap();
    for (words, code, says) in COMMANDS {
        let word = |word: &&str| {
            let file = files.iter().find(|(name, _)| name == word);
            match (*word, file) {
                ("JOB", _) => job.to_owned(),
                (_, Some((_, path))) => path.clone(),
                (word, None) => word.to_owned(),
            }
        };
        let words: Vec<String> = words.iter().map(word).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        stage.refuses(&words, *code, says);
    }
    stage.nobody_was_disturbed();
}
