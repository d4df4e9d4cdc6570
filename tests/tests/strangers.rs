//! Clients in other languages, generated only from the contract, against a running system.

// clippy.toml allows `unwrap` in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use serde_json::Value;
use togi_testing::poll_until;
use togi_tests::{System, run_python, tool, workspace};

const RECIPE: &str = r#"
name = "three-steps"
batch_size = 4
max_steps = 3
learning_rate = 1e-3
[lora]
rank = 4
"#;

/// Starts a system with a data set `small` and an adapter `mine`.
fn trained() -> System {
    let system = System::start(&[]);
    let records = workspace().join("demo/records.jsonl");
    system.togi(&[
        "prepare",
        records.to_str().unwrap(),
        "--name",
        "small",
        "--rows-per-shard",
        "128",
    ]);
    let recipe = system.data().join("recipe.toml");
    std::fs::write(&recipe, RECIPE).unwrap();
    let recipe = recipe.to_str().unwrap();
    system.togi(&[
        "train",
        "--recipe",
        recipe,
        "--dataset",
        "small",
        "--alias",
        "mine",
        "--watch",
    ]);
    system
}

#[test]
fn strangers_can_use_everything() {
    let system = trained();
    python_grpc(&system);
    pyarrow(&system);
    reflection(&system);
    events(&system);
    training_by_message(&system);
    metrics(&system);
}

fn python_grpc(system: &System) {
    let proto = workspace().join("proto");
    let text = run_python(
        "grpc_client.py",
        &[
            &system.endpoint,
            proto.to_str().unwrap(),
            "川の名前は何ですか。",
        ],
    );
    let seen: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(seen["datasets"][0]["name"], "small", "{seen}");
    assert_eq!(seen["jobs"][0]["state"], "JOB_STATE_SUCCEEDED", "{seen}");
    assert_eq!(seen["events"][0], "started", "{seen}");
    assert_eq!(
        seen["events"].as_array().unwrap().last().unwrap(),
        "finished",
        "{seen}"
    );
    assert!(!seen["answer"].as_str().unwrap().is_empty(), "{seen}");
    assert_eq!(seen["unknown_job"], "NOT_FOUND", "{seen}");
}

fn pyarrow(system: &System) {
    let dataset = system.togi_json(&["datasets", "show", "small"]);
    let digest = dataset["digest"].as_str().unwrap();
    let folder = system.data().join("store/datasets").join(digest);
    let mut shards: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "parquet")
        })
        .map(|path| path.to_str().unwrap().to_owned())
        .collect();
    shards.sort();
    assert!(shards.len() > 1, "several shards: {shards:?}");
    let arguments: Vec<&str> = [system.endpoint.as_str(), digest]
        .into_iter()
        .chain(shards.iter().map(String::as_str))
        .collect();
    let seen: Value = serde_json::from_str(&run_python("flight_client.py", &arguments)).unwrap();
    let rows: u64 = dataset["rows"].as_str().unwrap().parse().unwrap();
    let tokens: u64 = dataset["tokens"].as_str().unwrap().parse().unwrap();
    for field in ["info_rows", "endpoint_rows", "flight_rows", "file_rows"] {
        assert_eq!(seen[field], rows, "{field}: {seen}");
    }
    assert_eq!(seen["tokens"], tokens, "{seen}");
    for field in [
        "same_rows",
        "is_shuffled",
        "repeats",
        "resumes",
        "next_epoch_differs",
        "lengths_agree",
    ] {
        assert_eq!(seen[field], true, "{field}: {seen}");
    }
}

fn reflection(system: &System) {
    let buf = |arguments: &[&str]| {
        let output = Command::new(tool("buf"))
            .args(["curl", "--protocol", "grpc", "--http2-prior-knowledge"])
            .args(arguments)
            .env("BUF_CACHE_DIR", system.data().join("buf"))
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "buf curl {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    let methods = buf(&["--list-methods", &system.endpoint]);
    for method in [
        "DataPrepService/Prepare",
        "TrainerService/CreateJob",
        "InferenceService/Generate",
        "FlightService/DoGet",
    ] {
        assert!(methods.contains(method), "{methods}");
    }
    let url = format!(
        "{}/togi.inference.v1.InferenceService/ListAdapters",
        system.endpoint
    );
    let served: Value = serde_json::from_str(&buf(&["--data", "{}", &url])).unwrap();
    assert_eq!(served["adapters"][0]["alias"], "mine", "{served}");
    let url = format!("{}/grpc.health.v1.Health/Check", system.endpoint);
    assert!(buf(&["--data", "{}", &url]).contains("SERVING"));
}

fn events(system: &System) {
    let text = run_python("events.py", &[&system.nats]);
    let events: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let one = |subject: &str| {
        let found = events.iter().find(|event| event["subject"] == subject);
        found.unwrap_or_else(|| panic!("no {subject} in {text}"))
    };
    let ready = one("togi.events.dataset.ready");
    assert_eq!(ready["headers"]["ce-specversion"], "1.0", "{ready}");
    assert!(ready["headers"]["traceparent"].is_string(), "{ready}");
    assert!(ready["headers"]["Nats-Msg-Id"].is_string(), "{ready}");
    assert_eq!(ready["body"]["name"], "small", "{ready}");
    for subject in [
        "togi.events.job.queued",
        "togi.events.job.started",
        "togi.events.job.succeeded",
        "togi.events.adapter.published",
        "togi.events.adapter.promoted",
        "togi.events.adapter.loaded",
    ] {
        one(subject);
    }
}

/// A plain NATS client starts a training by policy; a message that is not a request becomes a dead
/// letter.
fn training_by_message(system: &System) {
    let records = workspace().join("demo/records.jsonl");
    let prepare = ["prepare", records.to_str().unwrap(), "--name", "gated"];
    system.togi(&[&prepare[..], &["--validation-share", "0.05"]].concat());
    let policy = system.data().join("policy.toml");
    let text = "name = 'stranger'\ndataset = 'gated'\nbase = 'demo'\nalias = 'asked'\nrecipe = 'recipe.toml'\n";
    std::fs::write(&policy, text).unwrap();
    system.togi(&["policies", "apply", policy.to_str().unwrap()]);
    let line = r#"{"policy": "stranger", "idempotencyKey": "once"}"#;
    for _ in 0..2 {
        run_python("publish.py", &[&system.nats, line]);
    }
    let aliases = || system.togi_json(&["adapters", "aliases"]).to_string();
    poll_until("the adapter is promoted", || {
        aliases().contains("asked").then_some(())
    });
    let jobs = system.togi_json(&["jobs", "list"]);
    assert_eq!(
        jobs["jobs"].as_array().unwrap().len(),
        2,
        "the same line twice is one job"
    );
}

fn metrics(system: &System) {
    let mut address = system.admin.trim_start_matches("http://").to_owned();
    address.truncate(address.find('/').unwrap_or(address.len()));
    let get = |path: &str| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    for path in ["/livez", "/readyz"] {
        assert!(get(path).starts_with("HTTP/1.1 200"), "{path}");
    }
    let metrics = get("/metrics");
    assert!(metrics.contains("rpc_server_call_duration"), "{metrics}");
}
