//! The alert rules: Prometheus accepts them, and each fires exactly when it should.

// clippy.toml allows `unwrap` in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use togi_tests::workspace;

#[test]
fn each_alert_fires_when_it_should() {
    let folder = workspace().join("deploy");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let (rules, tests) = (read("rules.yaml"), read("rules.test.yaml"));
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    let firing = |alert: &&str| {
        let mut parts = tests.split("alertname: ").skip(1);
        parts.any(|part| {
            let mut lines = part.lines();
            lines.next() == Some(alert)
                && lines.next().is_some_and(|line| line.contains("exp_alerts"))
        })
    };
    let unseen: Vec<_> = alerts.iter().filter(|alert| !firing(alert)).collect();
    assert!(
        !alerts.is_empty() && unseen.is_empty(),
        "no test lets {unseen:?} fire"
    );
    for arguments in [
        ["check", "rules", "rules.yaml"],
        ["test", "rules", "rules.test.yaml"],
    ] {
        match Command::new("promtool")
            .args(arguments)
            .current_dir(&folder)
            .output()
        {
            Ok(output) => assert!(output.status.success(), "{arguments:?}: {output:?}"),
            Err(error) => eprintln!("SKIPPED, no promtool (Debian: prometheus): {error}"),
        }
    }
}
