//! A whole system as users run it: the `togi` program as child processes, over a temporary data
//! folder.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use togi_testing::poll_until;

/// The workspace's folder.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace")
}

/// Returns the path of this build's `togi` program.
pub fn program() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own path");
    let folder = own
        .ancestors()
        .nth(2)
        .expect("tests lie in target/PROFILE/deps");
    let program = folder.join("togi");
    assert!(
        program.is_file(),
        "{} is not built: cargo build --package togi",
        program.display()
    );
    program
}

/// A running `togi up`; stopped, and its folder removed, on drop.
pub struct System {
    child: Child,
    folder: TempDir,
    /// Address of the gRPC services.
    pub endpoint: String,
    /// Admin address: metrics and probes.
    pub admin: String,
    /// Address of the nats-server.
    pub nats: String,
}

impl System {
    /// Starts a system on free ports, with further arguments.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[])
    }

    /// Starts a system with further arguments and environment variables.
    pub fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let child = Self::spawn(folder.path(), arguments, environment);
        Self::when_up(child, folder)
    }

    fn spawn(data: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Child {
        let log = std::fs::File::create(data.join("up.log")).expect("the log's file");
        Command::new(program())
            .arg("up")
            .arg("--data")
            .arg(data)
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(arguments)
            .envs(environment.iter().copied())
            .current_dir(data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("togi starts")
    }

    fn when_up(mut child: Child, folder: TempDir) -> Self {
        let state = poll_until("togi up", || {
            if let Ok(Some(status)) = child.try_wait() {
                let log = std::fs::read_to_string(folder.path().join("up.log"));
                panic!("togi up ended with {status}: {}", log.unwrap_or_default());
            }
            let text = std::fs::read_to_string(folder.path().join("up.json")).ok()?;
            let state: Value = serde_json::from_str(&text).ok()?;
            state["pid"]
                .as_u64()
                .filter(|pid| *pid == u64::from(child.id()))?;
            state["endpoint"].is_string().then_some(state)
        });
        let field = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let system = Self {
            child,
            endpoint: field(&state["endpoint"]),
            admin: field(&state["admin"]),
            nats: field(&state["nats"]["url"]),
            folder,
        };
        poll_until("the services to be ready", || {
            system
                .try_togi(&["datasets", "list"])
                .status
                .success()
                .then_some(())
        });
        system
    }

    /// Returns the data folder.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the log.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data().join("up.log")).unwrap_or_default()
    }

    /// Returns the admin port's answer to a path, with its headers.
    ///
    /// # Panics
    /// If the port does not answer.
    #[must_use]
    pub fn get(&self, path: &str) -> String {
        let address = self.admin.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("the admin port answers");
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream
            .write_all(request.as_bytes())
            .expect("the request is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    /// Returns the process id of `togi up`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills `togi up`, as if the machine had failed, and restarts it over the same data.
    pub fn kill_and_restart(mut self, arguments: &[&str]) -> Self {
        self.child.kill().expect("the child can be killed");
        self.child.wait().expect("the child ends");
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a folder"));
        drop(self);
        let child = Self::spawn(folder.path(), arguments, &[]);
        Self::when_up(child, folder)
    }

    /// Runs `togi` against this system.
    pub fn try_togi(&self, arguments: &[&str]) -> Output {
        try_togi(self.data(), Some(&self.endpoint), arguments)
    }

    /// Runs `togi` against this system and returns its output.
    ///
    /// # Panics
    /// If the command fails.
    pub fn togi(&self, arguments: &[&str]) -> String {
        let output = self.try_togi(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "togi {arguments:?} ended with {}: {errors}\n--- log\n{}",
            output.status,
            self.log()
        );
        String::from_utf8(output.stdout).expect("togi prints UTF-8")
    }

    /// Runs `togi` with `--output json` and returns the parsed output.
    pub fn togi_json(&self, arguments: &[&str]) -> Value {
        let text = self.togi(&[arguments, &["--output", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in: {text}"))
    }
}

/// Runs `togi` in a folder, against `endpoint` or else the one in the folder's configuration.
pub(crate) fn try_togi(folder: &Path, endpoint: Option<&str>, arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    if let Some(endpoint) = endpoint {
        command.env("TOGI_ENDPOINT", endpoint);
    }
    command
        .args(arguments)
        .env("NO_COLOR", "1")
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("togi runs")
}

impl Drop for System {
    fn drop(&mut self) {
        // SIGTERM first, so that the nats-server child stops too.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let deadline = Instant::now() + Duration::from_secs(20);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// Runs a script of `tests/strangers` with `.tools`' Python and returns its output.
pub fn run_python(script: &str, arguments: &[&str]) -> String {
    let python = workspace().join(".tools/venv/bin/python");
    assert!(
        python.exists(),
        "{} is missing: tools/install test",
        python.display()
    );
    let output = Command::new(python)
        .arg(workspace().join("tests/strangers").join(script))
        .args(arguments)
        .output()
        .expect("python runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{script} ended with {}: {errors}",
        output.status
    );
    String::from_utf8(output.stdout).expect("the script prints UTF-8")
}
