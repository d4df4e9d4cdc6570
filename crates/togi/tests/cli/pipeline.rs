//! `togi run`: a pipeline in one call, with its own or given services, its reports and exit codes.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use serde_json::Value;
use togi_runtime::config::StoreConfig;
use togi_testing::NatsServer;

use super::services::Served;
use super::world::{Ran, togi};

const PIPELINE: &str = "\
[prepare]
file = 'records.jsonl'
name = 'mine'
learn = 'answer'
validation_share = 0.2
[train]
alias = 'mine'
[train.recipe]
name = 'three-steps'
max_steps = 3
batch_size = 4
[train.recipe.lora]
rank = 2
[gate]
questions = 'questions.jsonl'
max_new_tokens = 4
";

/// Returns a folder with a pipeline, its records and a question that no model answers correctly.
fn folder(pipeline: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_to(folder.path(), pipeline);
    folder
}

fn write_to(folder: &Path, pipeline: &str) {
    let record = |n: usize| {
        format!("{{\"index\":\"{n}\",\"instruction\":\"{n}番の色は？\",\"output\":\"赤です。\"}}\n")
    };
    let records: String = (0..32).map(record).collect();
    let question = "{\"instruction\":\"1番の色は？\",\"output\":\"これではない\"}\n";
    for (name, text) in [
        ("pipeline.toml", pipeline),
        ("records.jsonl", &records),
        ("questions.jsonl", question),
    ] {
        fs::write(folder.join(name), text).unwrap();
    }
}

fn report(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join("reports/togi-report.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn junit(folder: &Path) -> String {
    fs::read_to_string(folder.join("reports/togi-report.xml")).unwrap()
}

fn outcomes(report: &Value) -> Vec<&str> {
    let stages = report["stages"].as_array().unwrap();
    stages
        .iter()
        .filter_map(|stage| stage["outcome"].as_str())
        .collect()
}

fn run(folder: &Path, more: &[&str]) -> Ran {
    let words = ["run", "pipeline.toml", "--report", "json,junit"];
    let words = [&words[..], &["--report-folder", "reports"], more].concat();
    togi(folder, &words, "")
}

#[test]
fn the_same_inputs_give_the_same_generation_without_anything_running() {
    let mut generations = Vec::new();
    for _ in 0..2 {
        let folder = folder(PIPELINE);
        let ran = run(folder.path(), &["-o", "json"]).expect(0);
        let report = report(folder.path());
        assert_eq!(ran.json(), report, "on standard output as in the file");
        assert_eq!(outcomes(&report), ["passed"; 4]);
        let evaluation = &report["evaluation"];
        assert_eq!(evaluation["generation"], report["job"]["result"]);
        assert_eq!(evaluation["answers"]["asked"], "1");
        assert_eq!(report["alias"]["generation"], report["job"]["result"]);
        assert!(
            junit(folder.path()).contains("tests=\"4\" skipped=\"0\" errors=\"0\" failures=\"0\"")
        );
        assert!(
            !folder.path().join(".togi/up.json").exists(),
            "nothing runs"
        );
        generations.push(report["job"]["result"].as_str().unwrap().to_owned());
    }
    assert_eq!(generations[0], generations[1]);
}

#[test]
fn a_refusal_by_the_gate_ends_with_five_and_the_reports_say_why() {
    let folder = folder(&format!("{PIPELINE}least_right = 1.0\n"));
    let ran = run(folder.path(), &[]).expect(5);
    let says = "0 of 1 questions are answered right: less than the share of 1";
    assert!(ran.stderr.contains(says), "{}", ran.stderr);
    let report = report(folder.path());
    assert_eq!(
        outcomes(&report),
        ["passed", "passed", "refused", "skipped"]
    );
    assert_eq!(
        (&report["exitCode"], &report["outcome"]),
        (&5.into(), &"refused".into())
    );
    let junit = junit(folder.path());
    assert!(
        junit.contains("skipped=\"1\" errors=\"0\" failures=\"1\""),
        "{junit}"
    );
    assert!(junit.contains("<failure message=\"job "), "{junit}");
    let aliases = folder.path().join(".togi/store/aliases");
    assert!(!aliases.exists(), "nothing is promoted");
}

#[test]
fn what_is_wrong_is_named_and_reported() {
    let cases = [
        (
            PIPELINE.replace("learn =", "lern ="),
            64,
            "pipeline.toml:4: unknown field `lern`",
        ),
        (
            PIPELINE.replace("alias =", "aliaz ="),
            64,
            "[train] unknown field `aliaz`",
        ),
        (
            PIPELINE.replace("max_steps", "most_steps"),
            64,
            "most_steps",
        ),
        (PIPELINE.replace("max_new_tokens", "tokens"), 64, "tokens"),
        (
            PIPELINE.replace("file = 'records.jsonl'", ""),
            64,
            "one of file, source and hub",
        ),
    ];
    for (pipeline, code, says) in cases {
        let folder = folder(&pipeline);
        let ran = run(folder.path(), &[]).expect(code);
        assert!(ran.stderr.contains(says), "{says}: {}", ran.stderr);
        assert!(!folder.path().join(".togi").exists(), "nothing was started");
    }
    let missing = PIPELINE.replace("records.jsonl", "none.jsonl");
    let unheld = PIPELINE.replace("validation_share = 0.2", "");
    let cases = [
        (
            missing,
            3,
            ["failed", "skipped", "skipped", "skipped"],
            "none.jsonl",
        ),
        (
            unheld,
            5,
            ["passed", "failed", "skipped", "skipped"],
            "validation rows",
        ),
    ];
    for (pipeline, code, expected, says) in cases {
        let folder = folder(&pipeline);
        let ran = run(folder.path(), &[]).expect(code);
        assert!(ran.stderr.contains(says), "{says}: {}", ran.stderr);
        let report = report(folder.path());
        assert_eq!(outcomes(&report), expected, "{report}");
        assert_eq!(report["exitCode"], code);
        assert!(junit(folder.path()).contains("type=\"togi\"/>"));
    }
    let folder = folder(PIPELINE);
    togi(folder.path(), &["run", "none.toml"], "").expect(3);
    togi(
        folder.path(),
        &["run", "pipeline.toml", "--report", "pdf"],
        "",
    )
    .expect(2);
}

#[test]
fn a_given_nats_and_store_are_used_and_left() {
    let nats = NatsServer::start();
    let store = tempfile::tempdir().unwrap();
    let url = StoreConfig::folder(store.path()).unwrap().url;
    let given = ["--nats", &nats.url(), "--store", &url];
    let mut served = Vec::new();
    for _ in 0..2 {
        let folder = folder(PIPELINE);
        run(folder.path(), &given).expect(0);
        assert!(!folder.path().join(".togi/nats").exists());
        served.push(report(folder.path())["evaluation"]["serving"].clone());
    }
    // The second run finds the first run's result.
    assert!(served[0].is_null() && served[1].is_string(), "{served:?}");
    assert!(store.path().join("aliases/mine/1.json").exists());
    assert!(!store.path().join("aliases/mine/2.json").exists());
}

#[test]
fn a_nats_server_that_does_not_answer_is_named_and_reported() {
    // One address refuses connections; the other accepts them and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [&silent, &gone].map(|port| port.local_addr().unwrap());
    drop(gone);
    for address in addresses {
        let folder = folder(PIPELINE);
        let given = format!("nats://somebody:secret@{address}");
        let ran = run(folder.path(), &["--nats", &given, "--patience", "1"]).expect(4);
        let says = format!("NATS at nats://{address} does not answer, after 1.0 s");
        assert!(ran.stderr.contains(&says), "{}", ran.stderr);
        assert!(!ran.stderr.contains("secret"), "{}", ran.stderr);
        let report = report(folder.path());
        assert_eq!(
            outcomes(&report),
            ["failed", "skipped", "skipped", "skipped"]
        );
        assert_eq!(report["exitCode"], 4);
        assert!(junit(folder.path()).contains(&says));
        assert!(!folder.path().join(".togi/up.json").exists());
    }
}

#[test]
fn a_store_that_does_not_answer_is_named_and_the_own_nats_server_ends() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let folder = folder(PIPELINE);
    let options = format!(
        "[store.options]\naws_endpoint = '{endpoint}'\naws_allow_http = 'true'\naws_region = 'x'\n\
         aws_access_key_id = 'x'\naws_secret_access_key = 'x'\n"
    );
    fs::write(folder.path().join("togi.toml"), options).unwrap();
    let ran = run(
        folder.path(),
        &["--store", "s3://models", "--patience", "1"],
    )
    .expect(4);
    let says = "the store at s3://models does not answer, after 1.0 s";
    assert!(ran.stderr.contains(says), "{}", ran.stderr);
    assert!(!folder.path().join(".togi/up.json").exists());
    let log = fs::read_to_string(folder.path().join(".togi/nats/nats.log")).unwrap();
    assert!(log.contains("Server Exiting"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_run_already_do_the_work() {
    let served = Served::start().await;
    write_to(served.path(), PIPELINE);
    let ran = served
        .run(&["run", "pipeline.toml", "-o", "json"], "")
        .await;
    let report = ran.expect(0).json();
    let job = report["job"]["id"].as_str().unwrap();
    let shown = served.run(&["jobs", "show", job, "-o", "json"], "").await;
    let shown = shown.expect(0).json();
    assert_eq!(shown["evaluation"], report["evaluation"]);
    served.running.stop().await.unwrap();
}
