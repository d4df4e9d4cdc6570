//! Refusals of the commands without services: the exit code and the faulty item's name.

use std::fs;

use super::bench::Bench;

/// Runs each line and checks its exit code and message, and that it prints no data.
fn refused(bench: &Bench, cases: &[(&str, i32, &str)]) {
    for (line, code, says) in cases {
        let ran = bench.run(line);
        assert_eq!(ran.code, *code, "{line}\n{}", ran.stderr);
        assert!(ran.stderr.contains(says), "{line}\n{}", ran.stderr);
        assert_eq!(ran.stdout, "", "{line}");
    }
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let bench = Bench::new();
    bench.write("ids.jsonl", "[1, 2]\n");
    let cases = [
        "generate --base base --device cuda:99 --raw x",
        "logits --base base --device cuda:99 --ids ids.jsonl --out x",
        "up --device cuda:99",
    ];
    refused(
        &bench,
        &cases.map(|line| (line, 5, "error: device cuda:99: ")),
    );
    let says = "invalid value 'gpu' for '--device <NAME>': it is cpu, cuda, or cuda:N";
    refused(
        &bench,
        &[(
            "logits --base base --device gpu --ids ids.jsonl --out x",
            2,
            says,
        )],
    );
}

#[test]
fn wrong_input_is_named_with_its_exit_code() {
    let bench = Bench::new();
    bench.write("bad.jsonl", "{\"ids\": [1]}\n{\"ids\": [99999]}\n");
    bench.write("empty.jsonl", "\n");
    bench.write("not.model", "nothing");
    fs::create_dir(bench.path("hollow")).unwrap();
    fs::create_dir(bench.path("piped")).unwrap();
    let pipe = bench.path("piped/spiece.model");
    let made = std::process::Command::new("mkfifo").arg(pipe).status();
    assert!(made.unwrap().success());
    bench.adapter("adapter");
    bench.write("adapter/adapter_config.json", "{\"peft_type\":\"LOHA\"}");
    let tokenize = [
        ("tokenize --base none x", 3, "none: "),
        ("tokenize --base base none.jsonl", 3, "none.jsonl: "),
        (
            "tokenize --base hollow bad.jsonl",
            5,
            "base hollow: it has no",
        ),
        (
            "tokenize --base piped bad.jsonl",
            5,
            "spiece.model: is a named pipe, and a regular file is needed",
        ),
        (
            "tokenize --base bad.jsonl bad.jsonl",
            5,
            "base bad.jsonl: it is no folder",
        ),
        (
            "tokenize --tokenizer not.model x",
            5,
            "tokenizer not.model: ",
        ),
        (
            "tokenize --base base bad.jsonl",
            64,
            "bad.jsonl:1: expected a text",
        ),
        (
            "tokenize --base base bad.jsonl --template",
            64,
            "bad.jsonl:1: instruction: missing",
        ),
        ("tokenize --base base x --max-length 0", 2, "--max-length"),
    ];
    refused(&bench, &tokenize);
    let logits = |more: &str| format!("logits --out x {more}");
    let logits = [
        (
            &*logits("--base base --ids bad.jsonl"),
            64,
            "bad.jsonl:2: id 99999",
        ),
        (
            &*logits("--base base --ids empty.jsonl"),
            64,
            "empty.jsonl: there is no",
        ),
        (
            &*logits("--base hollow --ids bad.jsonl"),
            3,
            "hollow/config.json",
        ),
        (
            &*logits("--base base --ids bad.jsonl --precision int3"),
            2,
            "--precision",
        ),
    ];
    refused(&bench, &logits);
    assert!(!bench.path("x").exists(), "nothing is half written");
    let others = [
        ("generate --base none --raw x", 3, "none: "),
        (
            "generate --base base --raw x --adapter adapter",
            5,
            "adapter adapter: ",
        ),
        (
            "generate --base base --raw x --temperature NaN",
            2,
            "temperature",
        ),
        (
            "export --merged --base base --adapter none --out y",
            3,
            "none: there is no such folder, and nothing answers at",
        ),
        (
            "generate --adapter adapters/mine --raw x",
            2,
            "needs --base",
        ),
    ];
    refused(&bench, &others);
}

/// The files of a base that was extended by transformers: every command that needs its ids says so.
#[test]
fn added_tokens_that_the_model_has_not_are_named() {
    let bench = Bench::new();
    bench.write(
        "base/added_tokens.json",
        r#"{"<NL>": 1280, "[INST]": 1281}"#,
    );
    let says = "added_tokens.json: the added token \"<NL>\" (id 1280) has another id";
    let cases = [
        "tokenize --base base x",
        "generate --base base --raw x",
        "train --local --out out --base base --recipe recipe.toml --records records.jsonl",
    ];
    refused(&bench, &cases.map(|line| (line, 5, says)));
    bench.write("base/added_tokens.json", "{}");
    bench.write("base/generation_config.json", r#"{"stop_strings": ["。"]}"#);
    let says = "generation_config.json: stop_strings";
    refused(&bench, &[("generate --base base --raw x", 5, says)]);
}

#[test]
fn a_training_that_cannot_be_is_refused_by_its_part() {
    let bench = Bench::new();
    bench.write("empty.jsonl", "\n");
    bench.write("bad.toml", "[lora]\nrank = 0\n");
    let train = |base: &str, recipe: &str, records: &str| {
        format!("train --local --out out --base {base} --recipe {recipe} --records {records}")
    };
    let good = train("base", "recipe.toml", "records.jsonl");
    let cases = [
        (&*train("none", "recipe.toml", "records.jsonl"), 3, "none: "),
        (
            &*train("base", "none.toml", "records.jsonl"),
            3,
            "none.toml: ",
        ),
        (
            &*train("base", "bad.toml", "records.jsonl"),
            2,
            "recipe.lora.rank",
        ),
        (
            &*train("base", "recipe.toml", "none.jsonl"),
            3,
            "none.jsonl: ",
        ),
        (&*train("base", "recipe.toml", "empty.jsonl"), 2, "records"),
        (&*format!("{good} --max-length 1"), 2, "--max-length"),
        (&*format!("{good} --init-adapter none"), 3, "none: "),
    ];
    refused(&bench, &cases);
}
