//! Shared by the tests: running the binary.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A finished run of the binary.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Parses standard output's lines as JSON; fails with the text if a line is not JSON.
    pub(crate) fn json_lines(&self) -> Vec<serde_json::Value> {
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
        };
        self.stdout.lines().map(parse).collect()
    }

    /// Parses standard output's only line as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        let mut lines = self.json_lines();
        assert_eq!(lines.len(), 1, "{}\n{}", self.stdout, self.stderr);
        lines.remove(0)
    }

    /// Asserts the exit code.
    pub(crate) fn expect(self, code: i32) -> Ran {
        assert_eq!(
            self.code, code,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }
}

/// Returns a command for the binary in a folder, without the caller's configuration.
pub(crate) fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_togi"));
    let ours = std::env::vars()
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("TOGI_"));
    ours.filter(|name| name != "TOGI_NATS_SERVER")
        .for_each(|name| {
            command.env_remove(name);
        });
    command
        .current_dir(folder)
        .env("XDG_CONFIG_HOME", folder.join("no-user-file"))
        .env_remove("NO_COLOR");
    command
}

/// Runs the binary with these arguments and this standard input.
pub(crate) fn togi(folder: &Path, words: &[&str], input: &str) -> Ran {
    let mut child = command(folder)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails early closes its input; that is not a test failure.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().unwrap();
    Ran {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}
