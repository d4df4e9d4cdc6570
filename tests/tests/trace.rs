//! One prepare request makes one trace, across three processes, the object store and two commands,
//! up to the served adapter.

// clippy.toml allows `unwrap` in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

use togi_testing::poll;
use togi_tests::{Cluster, Receiver, Span, workspace};

const POLICY: &str = r#"
name = "retrain"
dataset = "small"
base = "demo"
alias = "traced"

[recipe]
name = "two-steps"
batch_size = 4
max_steps = 2
checkpoint_every = 0
learning_rate = 1e-3

[recipe.lora]
rank = 4
"#;

/// Returns the services with a span in the trace.
fn services(spans: &[Span], trace: &str) -> Vec<String> {
    let mut names: Vec<_> = spans
        .iter()
        .filter(|span| span.trace == trace)
        .map(|span| span.service.clone())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Follows a span's parents to the root of its trace.
fn root<'a>(spans: &'a [Span], from: &'a Span) -> &'a Span {
    let mut span = from;
    while let Some(parent) = spans.iter().find(|other| other.id == span.parent) {
        span = parent;
    }
    span
}

#[test]
fn one_trace_leads_from_the_prepare_request_to_the_served_adapter() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let receiver = runtime.block_on(Receiver::start());
    let mut cluster = Cluster::start(&receiver.endpoint);

    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    std::fs::write(&policy, POLICY).unwrap();
    cluster.togi(&["policies", "apply", policy.to_str().unwrap()]);
    let records = workspace().join("demo/new-records.jsonl");
    cluster.togi(&[
        "prepare",
        records.to_str().unwrap(),
        "--name",
        "small",
        "--base",
        "demo",
        "--validation-share",
        "0.1",
    ]);

    // The policy trains and promotes, and inference answers with the new adapter.
    let promoted = poll(|| {
        let listed = cluster.togi(&["adapters", "aliases", "--output", "json"]);
        listed.contains("\"traced\"").then_some(())
    });
    assert!(
        promoted.is_some(),
        "waited a minute for the alias:\n{}",
        cluster.logs()
    );
    let answer = cluster.togi(&[
        "generate",
        "--adapter",
        "traced",
        "--instruction",
        "何ですか。",
        "--max-new-tokens",
        "4",
        "--output",
        "json",
    ]);
    assert!(answer.contains("generation"), "{answer}");
    cluster.stop();

    let spans = receiver.spans();
    let load = spans
        .iter()
        .find(|span| span.service.contains("inference") && span.name.contains("load"))
        .unwrap_or_else(|| panic!("inference sent no load span: {spans:#?}"));
    assert_eq!(
        services(&spans, &load.trace),
        ["togi-data-prep", "togi-inference", "togi-trainer"],
        "one trace joins all three: {spans:#?}"
    );
    // The lengths of the rows are read first, to plan the job's memory.
    let mut reads = spans.iter().filter(|span| span.name.ends_with("DoGet"));
    assert!(
        reads.any(|span| span.trace == load.trace),
        "the rows are read in the same trace: {spans:#?}"
    );
    let root = root(&spans, load);
    assert!(
        root.name.contains("Prepare"),
        "the trace starts with the prepare request: {root:?}"
    );
    assert!(root.service.contains("data-prep"), "{root:?}");
}
