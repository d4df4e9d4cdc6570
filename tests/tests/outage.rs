//! Recovery after killed processes, an outage of NATS, and the loss of all its data.

// clippy.toml allows `unwrap` in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use serde_json::Value;
use togi_testing::{NatsServer, poll_until};
use togi_tests::{S3, System, workspace};

const RECIPE: &str = r#"
name = "sixty-steps"
batch_size = 2
max_steps = 60
checkpoint_every = 5
learning_rate = 1e-3
[lora]
rank = 4
"#;

fn prepare(system: &System) {
    let records = workspace().join("demo/records.jsonl");
    system.togi(&[
        "prepare",
        records.to_str().unwrap(),
        "--name",
        "small",
        "--learn",
        "answer",
    ]);
    std::fs::write(system.data().join("recipe.toml"), RECIPE).unwrap();
}

/// Queues a training job and returns its id.
fn train(system: &System) -> String {
    let job = system.togi_json(&[
        "train",
        "--recipe",
        "recipe.toml",
        "--dataset",
        "small",
        "--alias",
        "a",
        "--no-watch",
    ]);
    let id = job["id"].as_str().or_else(|| job["job"]["id"].as_str());
    id.unwrap_or_else(|| panic!("no id in {job}")).to_owned()
}

fn ended(system: &System, job: &str) -> Value {
    poll_until("the job to end", || {
        let output = system.try_togi(&["jobs", "show", job, "--output", "json"]);
        let shown: Value = serde_json::from_slice(&output.stdout).ok()?;
        let record = if shown["job"].is_object() {
            shown["job"].clone()
        } else {
            shown
        };
        let state = record["state"].as_str()?;
        (state != "JOB_STATE_QUEUED" && state != "JOB_STATE_RUNNING").then_some(record)
    })
}

fn has_checkpoint(system: &System, job: &str) -> bool {
    let folder = system
        .data()
        .join("store/jobs")
        .join(job)
        .join("checkpoints");
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

#[test]
fn a_killed_system_resumes_and_ends_with_the_same_generation() {
    let system = System::start(&[]);
    prepare(&system);
    let undisturbed = ended(&system, &train(&system));
    assert_eq!(undisturbed["state"], "JOB_STATE_SUCCEEDED", "{undisturbed}");

    let job = train(&system);
    poll_until("a checkpoint", || {
        has_checkpoint(&system, &job).then_some(())
    });
    // The lease is short, so that the killed worker's job is soon free again.
    let system = system.kill_and_restart(&[]);
    let resumed = ended(&system, &job);
    assert_eq!(
        resumed["state"],
        "JOB_STATE_SUCCEEDED",
        "{resumed}\n{}",
        system.log()
    );
    assert_eq!(resumed["result"], undisturbed["result"]);

    // A client that starts watching now still sees every step once.
    let watched = system.togi(&["jobs", "watch", &job, "--output", "json"]);
    let steps: Vec<u64> = watched
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|update| update["step"]["step"].as_str()?.parse().ok())
        .collect();
    assert_eq!(steps, (1..=60).collect::<Vec<_>>());
}

#[test]
fn nats_may_die_and_forget_everything() {
    let system = System::start(&[]);
    prepare(&system);
    let job = train(&system);
    poll_until("a checkpoint", || {
        has_checkpoint(&system, &job).then_some(())
    });
    let state = std::fs::read_to_string(system.data().join("up.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    let pid = state["nats"]["pid"].as_u64().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-KILL", &pid])
            .status()
            .unwrap()
            .success()
    );
    let done = ended(&system, &job);
    assert_eq!(
        done["state"],
        "JOB_STATE_SUCCEEDED",
        "{done}\n{}",
        system.log()
    );

    // All NATS data is deleted between two starts; the system recovers from the store alone.
    let data = system.data().join("nats");
    let system = {
        let kept = system;
        std::fs::remove_dir_all(&data).ok();
        kept.kill_and_restart(&[])
    };
    let again = ended(&system, &job);
    assert_eq!(again["result"], done["result"], "{again}");
    poll_until("the adapter to be served", || {
        let generate = [
            "generate",
            "--adapter",
            "a",
            "--instruction",
            "誰。",
            "--max-new-tokens",
            "2",
        ];
        system.try_togi(&generate).status.success().then_some(())
    });
}

#[test]
fn commands_are_answered_while_nats_is_away_and_say_so() {
    let mut nats = NatsServer::start();
    let system = System::start(&["--nats", &nats.url()]);
    prepare(&system);
    let first = ended(&system, &train(&system));
    let generation = first["result"].as_str().unwrap();
    nats.kill();

    let promote = ["adapters", "promote", generation, "--alias", "while-away"];
    assert!(system.togi(&promote).contains("while-away"));
    let refused = system.try_togi(&["adapters", "rollback", "while-away"]);
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    poll_until("the adapter to be served by listing", || {
        let question = ["generate", "--adapter", "while-away", "--raw", "誰"];
        let words = [&question[..], &["--max-new-tokens", "2"]].concat();
        system.try_togi(&words).status.success().then_some(())
    });
    let asked = ["train", "--recipe", "recipe.toml", "--dataset", "small"];
    let asked = [&asked[..], &["--alias", "b", "--no-watch"]].concat();
    let asked = [&asked[..], &["--idempotency-key", "away"]].concat();
    let job = system.togi_json(&asked)["job"]["id"].clone();
    let job = job.as_str().unwrap();
    let shown = system.togi(&["jobs", "show", job]);
    assert!(
        shown.contains("waits for") && shown.contains("NATS: "),
        "{shown}"
    );
    let listed = system.togi(&["jobs", "list"]);
    assert!(listed.contains("waits for NATS: "), "{listed}");
    let ready = system.get("/readyz");
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    assert!(ready.contains("NATS: "), "{ready}");

    nats.resume();
    let trained = ended(&system, job);
    assert_eq!(trained["state"], "JOB_STATE_SUCCEEDED", "{trained}");
    assert_eq!(trained["result"], first["result"]);
    assert_eq!(system.togi_json(&asked)["job"]["id"], job);
    let jobs = system.togi_json(&["jobs", "list"]).to_string();
    assert_eq!(jobs.matches("JOB_KIND_TRAIN").count(), 2, "{jobs}");
}

#[test]
fn commands_are_answered_while_the_store_hangs_and_a_key_makes_one_job() {
    let s3 = S3::start();
    let environment: Vec<(&str, &str)> = s3
        .environment
        .iter()
        .filter(|(name, _)| name.starts_with("AWS_"))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let system = System::start_with(&["--store", "s3://togi"], &environment);
    prepare(&system);
    let first = train(&system);
    ended(&system, &first);
    s3.pause();

    let asked = ["train", "--recipe", "recipe.toml", "--dataset", "small"];
    let asked = [&asked[..], &["--alias", "b", "--no-watch"]].concat();
    let asked = [&asked[..], &["--idempotency-key", "hung"]].concat();
    let refused = system.try_togi(&asked);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{said}");
    assert!(
        said.contains("did not answer within 5.0 s; nothing was queued"),
        "{said}"
    );
    let refused = system.try_togi(&["adapters", "rollback", "a"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{said}");
    assert!(said.contains("list the aliases before"), "{said}");
    // NATS has the jobs' records.
    assert!(system.togi(&["jobs", "list"]).contains(&first));
    assert!(system.togi(&["jobs", "show", &first]).contains("succeeded"));

    s3.go_on();
    let job = system.togi_json(&asked)["job"]["id"].clone();
    assert_eq!(system.togi_json(&asked)["job"]["id"], job);
    let trained = ended(&system, job.as_str().unwrap());
    assert_eq!(trained["state"], "JOB_STATE_SUCCEEDED", "{trained}");
    let jobs = system.togi_json(&["jobs", "list"]).to_string();
    assert_eq!(jobs.matches("JOB_KIND_TRAIN").count(), 2, "{jobs}");
}
