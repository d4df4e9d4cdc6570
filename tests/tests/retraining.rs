//! Retraining by policy, end to end: five revisions arrive during one training, and the last has
//! shuffled answers.

// clippy.toml allows `unwrap` in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use serde_json::Value;
use togi_testing::{poll, poll_until};
use togi_tests::{System, workspace};

const RECIPE: &str = r#"
name = "ten-epochs"
epochs = 10
batch_size = 8
learning_rate = 2e-3
warmup_steps = 20
"#;

const POLICY: &str = r#"
name = "retrain"
dataset = "town"
base = "demo"
recipe = "recipe.toml"
alias = "mine"
"#;

fn lines(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(workspace().join("demo").join(file)).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Gives every record the answer of another record.
fn shuffled(mut records: Vec<Value>) -> Vec<Value> {
    let outputs: Vec<Value> = records
        .iter()
        .map(|record| record["output"].clone())
        .collect();
    for (at, record) in records.iter_mut().enumerate() {
        record["output"] = outputs[(at + 101) % outputs.len()].clone();
    }
    records
}

/// Prepares records as the given revision and returns the data set's digest.
fn prepare(system: &System, revision: usize, records: &[Value]) -> String {
    let file = system.data().join(format!("records-{revision}.jsonl"));
    let text: String = records.iter().map(|record| format!("{record}\n")).collect();
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let words = ["prepare", file, "--name", "town", "--learn", "answer"];
    let words = [&words[..], &["--validation-share", "0.1"]].concat();
    let made = system.togi_json(&words);
    assert_eq!(made["revision"], revision.to_string(), "{made}");
    made["digest"].as_str().unwrap().to_owned()
}

/// Returns the training jobs by their requested data sets.
fn jobs(system: &System) -> BTreeMap<String, Value> {
    let listed = system.togi_json(&["jobs", "list"]);
    let jobs = listed["jobs"].as_array().cloned().unwrap_or_default();
    let of = |job: Value| {
        let shown = system.togi_json(&["jobs", "show", job["id"].as_str().unwrap()]);
        let dataset = shown["request"]["dataset"].as_str().unwrap().to_owned();
        (dataset, shown)
    };
    jobs.into_iter().map(of).collect()
}

fn state(jobs: &BTreeMap<String, Value>, dataset: &str) -> String {
    let state = jobs.get(dataset).map(|shown| &shown["job"]["state"]);
    state.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Returns all events so far.
fn events(system: &System) -> Vec<Value> {
    let text = togi_tests::run_python("events.py", &[&system.nats]);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn named<'a>(events: &'a [Value], name: &str) -> impl Iterator<Item = &'a Value> {
    let subject = format!("togi.events.{name}");
    events
        .iter()
        .filter(move |event| event["subject"] == subject.as_str())
}

fn trace(event: &Value) -> &str {
    event["headers"]["traceparent"]
        .as_str()
        .unwrap()
        .split('-')
        .nth(1)
        .unwrap()
}

#[test]
fn a_poisoned_revision_is_refused_and_the_one_before_it_served() {
    let system = System::start(&[]);
    let write = |name: &str, text: &str| {
        let path = system.data().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let recipe = write("recipe.toml", RECIPE);
    let policy = write("policy.toml", POLICY);
    let (records, news) = (lines("records.jsonl"), lines("new-records.jsonl"));
    let with = |new: usize| [&records[..], &news[..new]].concat();

    let first = prepare(&system, 1, &with(0));
    let train = ["train", "--recipe", &recipe, "--dataset", &first];
    let train = [&train[..], &["--alias", "mine", "--no-watch"]].concat();
    let job = system.togi_json(&train)["job"]["id"].clone();
    system.togi(&["policies", "apply", &policy]);
    let mut digests = vec![first.clone()];
    for revision in 2..=5 {
        digests.push(prepare(&system, revision, &with(2 * revision - 2)));
    }
    let poisoned = prepare(&system, 6, &shuffled(with(10)));
    let running = system.togi_json(&["jobs", "show", job.as_str().unwrap()]);
    assert_eq!(
        running["job"]["state"], "JOB_STATE_RUNNING",
        "the first training was over before the revisions were there"
    );
    let fourth = &digests[4];

    let done = poll(|| (state(&jobs(&system), fourth) == "JOB_STATE_SUCCEEDED").then_some(()))
        .or_else(|| {
            poll(|| (state(&jobs(&system), fourth) == "JOB_STATE_SUCCEEDED").then_some(()))
        });
    let all = jobs(&system);
    assert!(done.is_some(), "{all:#?}\n{}", system.log());
    what_became_of_each(&all, &digests, &poisoned);
    let refused = &all[&poisoned];
    let bad = refused["evaluation"]["generation"].as_str().unwrap();
    let good = all[fourth]["job"]["result"].as_str().unwrap();
    let oldest = all[&first]["job"]["result"].as_str().unwrap();
    let id = refused["job"]["id"].as_str().unwrap();
    let waiting = system.try_togi(&["jobs", "watch", id]);
    assert_eq!(waiting.status.code(), Some(5), "refused by the gate");
    let says = String::from_utf8(waiting.stderr).unwrap();
    assert!(
        says.contains(&format!("refused generation {bad}")),
        "{says}"
    );
    poll_until("the fourth is served", || {
        serves(&system, good).then_some(())
    });

    let events = events(&system);
    for name in ["adapter.promoted", "adapter.loaded"] {
        let generations: Vec<_> = named(&events, name)
            .map(|event| event["body"]["generation"].as_str().unwrap())
            .collect();
        assert_eq!(generations, [oldest, good], "{name}");
    }
    let evaluated: Vec<_> = named(&events, "adapter.evaluated")
        .map(|event| &event["body"])
        .collect();
    assert_eq!(evaluated.len(), 2, "{evaluated:?}");
    assert_eq!(
        (&evaluated[0]["generation"], &evaluated[0]["serving"]),
        (&bad.into(), &oldest.into())
    );
    let reason = evaluated[0]["reason"].as_str().unwrap();
    assert!(reason.contains("above by more than 0.05"), "{reason}");
    assert_eq!(evaluated[1]["passed"], true);
    one_trace_from_preparation_to_service(&events, fourth, good);

    // Roll back to the previous generation, then promote the newer one again.
    system.togi(&["adapters", "rollback", "mine"]);
    poll_until("the first is served again", || {
        serves(&system, oldest).then_some(())
    });
}

fn what_became_of_each(all: &BTreeMap<String, Value>, digests: &[String], poisoned: &str) {
    let [first, second, third, fourth_before, fourth] = digests else {
        panic!("{digests:?}")
    };
    assert_eq!(state(all, first), "JOB_STATE_SUCCEEDED");
    let refused = &all[poisoned];
    assert_eq!(state(all, poisoned), "JOB_STATE_SUCCEEDED");
    assert_eq!(refused["job"]["refusal"], refused["evaluation"]["reason"]);
    assert_eq!(all[fourth]["job"]["refusal"], Value::Null);
    assert_eq!(state(all, fourth), "JOB_STATE_SUCCEEDED");
    // The job queued before the newer revisions was withdrawn; the revisions in between got no job.
    for digest in [second, third, fourth_before] {
        let state = state(all, digest);
        assert!(
            ["", "JOB_STATE_CANCELLED"].contains(&state.as_str()),
            "{state}"
        );
    }
}

/// Returns whether inference serves a generation under the alias.
fn serves(system: &System, generation: &str) -> bool {
    let served = system.togi_json(&["adapters", "served"]);
    let adapters = served["adapters"].as_array().cloned().unwrap_or_default();
    adapters
        .iter()
        .any(|adapter| adapter["alias"] == "mine" && adapter["generation"] == generation)
}

/// Checks that a revision's trace continues until the adapter is served.
fn one_trace_from_preparation_to_service(events: &[Value], dataset: &str, generation: &str) {
    let ready = named(events, "dataset.ready")
        .find(|event| event["body"]["dataset"] == dataset)
        .unwrap();
    let follows = events.iter().filter(|event| trace(event) == trace(ready));
    let mut subjects: Vec<_> = follows
        .map(|event| {
            event["subject"]
                .as_str()
                .unwrap()
                .trim_start_matches("togi.events.")
        })
        .collect();
    subjects.dedup();
    for name in [
        "job.queued",
        "job.started",
        "job.succeeded",
        "checkpoint.saved",
        "adapter.published",
        "adapter.evaluated",
        "adapter.promoted",
        "adapter.loaded",
    ] {
        assert!(subjects.contains(&name), "{name} is not in {subjects:?}");
    }
    for event in named(events, "adapter.loaded") {
        if event["body"]["generation"] == generation {
            assert_eq!(trace(event), trace(ready));
        }
    }
}
