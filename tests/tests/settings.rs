//! Services with wrong settings, or without NATS or a store: their messages, exit codes and
//! readiness.

// clippy.toml allows `unwrap` in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use togi_testing::{NatsServer, poll_until};
use togi_tests::{program, workspace};

const CONFIGURATION: i32 = 64;
const NOBODY: &str = "127.0.0.1:9";

/// Returns a service's command with valid settings, in a temporary folder.
fn service(name: &str, folder: &std::path::Path) -> Command {
    let base = workspace().join("demo/base");
    let mut command = Command::new(program().with_file_name(format!("togi-{name}")));
    command
        .env_clear()
        .env("HOME", folder)
        .env("TOGI_LISTEN__GRPC", "127.0.0.1:0")
        .env("TOGI_LISTEN__ADMIN", "127.0.0.1:0")
        .env("TOGI_STORE__URL", format!("file://{}", folder.display()))
        .env("TOGI_NATS__URL", format!("nats://{NOBODY}"))
        .env(
            "TOGI_BASES__DEMO__URL",
            format!("file://{}", base.display()),
        )
        .current_dir(folder)
        .stdin(Stdio::null());
    if name == "inference" {
        command.env("TOGI_BASE", "demo");
    }
    command
}

/// Runs a service that must refuse its settings with exit code 64 and one line with these words.
fn refuses(name: &str, variable: &str, value: &str, says: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let output = service(name, folder.path())
        .env(variable, value)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let about = format!("{name} {variable}={value}: {said}");
    assert_eq!(output.status.code(), Some(CONFIGURATION), "{about}");
    assert_eq!(said.lines().count(), 1, "{about}");
    assert!(said.contains(variable), "{about}");
    for part in says {
        assert!(said.contains(part), "{part}: {about}");
    }
}

#[test]
fn a_wrong_value_stops_a_service_with_its_variable_its_value_and_what_is_allowed() {
    for name in ["data-prep", "trainer", "inference"] {
        for (variable, value, says) in [
            (
                "TOGI_NATS__URL",
                "not a url",
                &["nats://127.0.0.1:4222"][..],
            ),
            ("TOGI_NATS__REPLICAS", "0", &["\"0\"", "from 1 to 5"]),
            ("TOGI_NATS__REPLICAS", "few", &["\"few\"", "expected usize"]),
            (
                "TOGI_NATS__ACK_WAIT_SECONDS",
                "-5",
                &["within 0.3 and 3600"],
            ),
            ("TOGI_NATS__CREDENTIALS", "/no/such", &["/no/such"]),
            ("TOGI_STORE__URL", "ftp://x", &["ftp://x"]),
            ("TOGI_STORE__URL", "nonsense", &["s3://bucket"]),
            (
                "TOGI_STORE__SECRETS",
                "/no/such",
                &["/no/such cannot be read"],
            ),
            (
                "TOGI_LISTEN__GRPC",
                "nowhere",
                &["\"nowhere\"", "socket address"],
            ),
            (
                "TOGI_TELEMETRY__LOG_FORMAT",
                "xml",
                &["\"xml\"", "`human` or `json`"],
            ),
            ("TOGI_TELEMETRY__LOG_FILTER", "a=b=c", &["\"warn\""]),
            ("TOGI_STORE__ULR", "x", &["unknown field", "`url`"]),
        ] {
            refuses(name, variable, value, says);
        }
    }
    for (name, variable, value, says) in [
        (
            "trainer",
            "TOGI_TRAINING__JOBS",
            "many",
            &["\"many\"", "expected u64"][..],
        ),
        (
            "trainer",
            "TOGI_TRAINING__LOG_FLUSH_SECONDS",
            "-1",
            &["within 0.001 and 3600"],
        ),
        ("trainer", "TOGI_DEVICE", "gpu", &["cpu, cuda, cuda:N"]),
        (
            "trainer",
            "TOGI_ROLES",
            "[\"boss\"]",
            &["`api` or `worker`"],
        ),
        (
            "trainer",
            "TOGI_DATA_PREP",
            "nonsense",
            &["http://127.0.0.1:7671"],
        ),
        (
            "inference",
            "TOGI_BASE",
            "nobody",
            &["none of [bases]: demo"],
        ),
        (
            "inference",
            "TOGI_BASES__DEMO__PRECISION",
            "int3",
            &["f32", "nf4"],
        ),
        ("inference", "TOGI_ENGINE__MAX_ACTIVE", "0", &["at least 1"]),
        ("data-prep", "TOGI_FLIGHT__BATCH_ROWS", "0", &["at least 1"]),
    ] {
        refuses(name, variable, value, says);
    }
}

#[test]
fn a_file_is_named_with_its_line_also_by_validate_and_secrets_are_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mounted.toml");
    std::fs::write(
        &file,
        "[nats]\nreplicas = 1\n\n[training]\njobs = \"many\"\n",
    )
    .unwrap();
    let secrets = folder.path().join("secrets");
    std::fs::write(&secrets, "aws_access_key_id=a\nhunter2\n").unwrap();
    let run = |arguments: &[&str], variable: &str, value: &str| {
        let output = service("trainer", folder.path())
            .args(arguments)
            .env(variable, value)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(CONFIGURATION));
        String::from_utf8(output.stderr).unwrap()
    };
    let file = file.to_str().unwrap();
    for arguments in [&["--config", file][..], &["--config", file, "--validate"]] {
        let said = run(arguments, "UNUSED", "");
        assert!(said.contains("mounted.toml, line 5: "), "{said}");
        assert!(said.contains("expected u64"), "{said}");
    }
    let same = ["--validate"];
    let said = run(&same, "TOGI_TRAINING__JOBS", "many");
    assert!(said.contains("TOGI_TRAINING__JOBS is \"many\""), "{said}");
    for (variable, value) in [
        ("TOGI_STORE__SECRETS", secrets.to_str().unwrap()),
        ("TOGI_STORE__SECRET_ACCESS_KEY", "hunter2"),
        ("TOGI_TRAINING__JOBS", "s3://me:hunter2@host"),
    ] {
        let said = run(&[], variable, value);
        assert!(said.contains(variable), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

/// A running service, its log, and its admin address.
struct Running {
    child: Child,
    log: std::path::PathBuf,
    admin: String,
}

impl Running {
    fn start(mut command: Command, folder: &std::path::Path) -> Running {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = listener.local_addr().unwrap().to_string();
        drop(listener);
        let log = folder.join("log");
        let file = std::fs::File::create(&log).unwrap();
        let child = command
            .env("TOGI_LISTEN__ADMIN", &admin)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        Running { child, log, admin }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns whether a probe succeeds; `None` without an answer.
    fn probe(&self, path: &str) -> Option<bool> {
        let mut stream = std::net::TcpStream::connect(&self.admin).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer.starts_with("HTTP/1.1 200"))
    }

    /// Waits until the service is alive, not ready, and names the missing dependency.
    fn waits(&mut self, says: &str) {
        poll_until(says, || self.log().contains(says).then_some(()));
        assert_eq!(self.probe("/livez"), Some(true), "{}", self.log());
        assert_eq!(self.probe("/readyz"), Some(false), "{}", self.log());
        assert!(self.child.try_wait().unwrap().is_none(), "{}", self.log());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn without_nats_a_service_waits_says_so_and_is_ready_when_it_comes() {
    let mut nats = NatsServer::start();
    let url = nats.url();
    nats.kill();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut waiting: Vec<Running> = ["data-prep", "trainer"]
        .iter()
        .zip(&folders)
        .map(|(name, folder)| {
            let mut command = service(name, folder.path());
            command.env("TOGI_NATS__URL", &url);
            Running::start(command, folder.path())
        })
        .collect();
    for service in &mut waiting {
        service.waits("waiting for NATS");
    }
    nats.resume();
    for service in &waiting {
        poll_until("ready", || service.probe("/readyz").filter(|ready| *ready));
    }
    // A replica answers without NATS, because the store alone is authoritative.
    let folder = tempfile::tempdir().unwrap();
    let inference = Running::start(service("inference", folder.path()), folder.path());
    poll_until("ready", || {
        inference.probe("/readyz").filter(|ready| *ready)
    });
    assert!(inference.log().contains("the bus is not there"));
}

#[test]
fn without_its_store_a_service_waits_and_says_so() {
    for name in ["data-prep", "trainer", "inference"] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = service(name, folder.path());
        command
            .env("TOGI_STORE__URL", "s3://togi")
            .env("AWS_ENDPOINT", format!("http://{NOBODY}"))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "hunter2");
        let mut running = Running::start(command, folder.path());
        running.waits("waiting for the object store");
        assert!(!running.log().contains("hunter2"), "{}", running.log());
    }
}
