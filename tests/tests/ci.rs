//! The workflows in `deploy/ci`: the test runs their commands exactly as the files have them.

// The configuration's exception for tests sees test functions, not their helpers.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use togi_testing::NatsServer;
use togi_tests::workspace;

fn workflow(name: &str) -> String {
    std::fs::read_to_string(workspace().join("deploy/ci").join(name)).unwrap()
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The commands of the steps of a GitHub workflow: what stands after `run:`, on its line or, after
/// `|`, below it.
fn steps(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut commands = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(command) = line
            .trim_start()
            .trim_start_matches("- ")
            .strip_prefix("run: ")
        else {
            continue;
        };
        if command != "|" {
            commands.push(command.to_owned());
            continue;
        }
        let below = lines[at + 1..].iter();
        let block = below.take_while(|below| indentation(below) > indentation(line));
        let block: Vec<&str> = block.map(|below| below.trim_start()).collect();
        commands.push(block.join("\n"));
    }
    commands
}

/// The commands of a GitLab job: the items below `script:`.
fn script(text: &str) -> Vec<String> {
    let mut lines = text.lines();
    let script = lines.find(|line| line.trim() == "script:").unwrap();
    let items = lines.take_while(|line| indentation(line) > indentation(script));
    items
        .map(|line| line.trim_start().strip_prefix("- ").unwrap().to_owned())
        .collect()
}

/// Runs commands as a CI system does, one after the other in the clone, and returns the report of
/// the last.
fn run(commands: &[String], environment: &[(&str, &str)], reports: &Path) -> Value {
    for command in commands {
        let output = Command::new("bash")
            .args(["-e", "-o", "pipefail", "-c", command])
            .envs(environment.iter().copied())
            .current_dir(workspace())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}");
    }
    let xml = std::fs::read_to_string(reports.join("togi-report.xml")).unwrap();
    // The order of an element's attributes means nothing in XML.
    for (attribute, count) in [("tests", 4), ("failures", 0), ("errors", 0)] {
        assert!(xml.contains(&format!(" {attribute}=\"{count}\"")), "{xml}");
    }
    assert!(!xml.contains("<skipped"), "{xml}");
    let json = std::fs::read_to_string(reports.join("togi-report.json")).unwrap();
    serde_json::from_str(&json).unwrap()
}

#[test]
fn both_workflows_run_and_make_the_same_generation() {
    let folder = tempfile::tempdir().unwrap();
    let temporary = folder.path().join("github");
    let commands = steps(&workflow("github-actions.yml"));
    assert_eq!(commands.len(), 3, "{commands:?}");
    let environment = [("RUNNER_TEMP", temporary.to_str().unwrap())];
    let github = run(&commands, &environment, &temporary.join("reports"));

    let project = folder.path().join("gitlab");
    let nats = NatsServer::start();
    let commands = script(&workflow("gitlab-ci.yml"));
    assert_eq!(commands.len(), 2, "{commands:?}");
    // The service beside the job has another address here.
    let url = nats.url();
    let environment = [
        ("CI_PROJECT_DIR", project.to_str().unwrap()),
        ("TOGI_NATS__URL", &url),
    ];
    let gitlab = run(&commands, &environment, &project.join("reports"));
    assert!(
        !project.join(".togi/nats").exists(),
        "the given server was used"
    );

    for report in [&github, &gitlab] {
        assert_eq!(report["alias"]["name"], "town", "{report}");
        let right = report["evaluation"]["answers"]["right"].as_str().unwrap();
        assert!(right.parse::<u64>().unwrap() >= 96, "{report}");
    }
    assert_eq!(github["job"]["result"], gitlab["job"]["result"]);
}
