//! The workflows in `deploy/ci`, whose commands the test runs unchanged.

// clippy.toml allows `unwrap` in test functions, but not in their helpers.
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

/// Returns the commands of a GitHub workflow's steps: the text after `run:`, or the lines below
/// `run: |`.
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

/// Returns the commands of a GitLab job: the items of `script:`.
fn script(text: &str) -> Vec<String> {
    let mut lines = text.lines();
    let script = lines.find(|line| line.trim() == "script:").unwrap();
    let items = lines.take_while(|line| indentation(line) > indentation(script));
    items
        .map(|line| line.trim_start().strip_prefix("- ").unwrap().to_owned())
        .collect()
}

/// Runs commands one by one in the clone, as a CI system does, and returns the last one's report.
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
    // XML attributes have no order.
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
    // In this test the job's service has another address.
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
