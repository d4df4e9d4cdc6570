//! The start and the end of the processes: a cause that cannot pass ends them at once, with the
//! setting and what to do; another is waited for; and no child stays behind.

// clippy.toml allows `unwrap` in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

use std::iter;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use togi_testing::http::{Answer, answering};
use togi_testing::{free_port, nats_server_binary, poll, poll_until};
use togi_tests::{S3, program, workspace};

const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const UNAVAILABLE: i32 = 4;
const REFUSED: i32 = 5;
const CONFIGURATION: i32 = 64;
const INTERRUPTED: i32 = 130;

/// A process that is killed on drop, and what it said.
struct Started {
    child: Child,
    folder: TempDir,
}

impl Started {
    fn new(mut command: Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(folder.path().join("said")).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("said")).unwrap()
    }

    fn says(&self, text: &str) {
        poll_until(text, || self.said().contains(text).then_some(()));
    }

    fn signal(&self, name: &str) {
        signal(name, u64::from(self.child.id()));
    }

    /// Waits for the end and checks its code and message.
    fn ends(mut self, code: i32, says: &[&str]) {
        let status = poll(|| self.child.try_wait().unwrap());
        let said = self.said();
        let status = status.unwrap_or_else(|| panic!("it does not end by itself: {said}"));
        assert_eq!(status.code(), Some(code), "{said}");
        for text in says {
            assert!(said.contains(text), "{text:?} is not in: {said}");
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(name: &str, pid: u64) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status();
    assert!(sent.unwrap().success(), "process {pid} is gone");
}

fn up(data: &Path) -> Command {
    let mut command = Command::new(program());
    command
        .args(["up", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .arg("--data")
        .arg(data)
        .env("NO_COLOR", "1")
        .current_dir(data);
    command
}

fn service(name: &str, store: &str, nats: &str) -> Command {
    let mut command = Command::new(program().with_file_name(format!("togi-{name}")));
    let base = url::Url::from_directory_path(workspace().join("demo/base")).unwrap();
    command
        .env("TOGI_STORE__URL", store)
        .env("TOGI_NATS__URL", nats)
        .env("TOGI_LISTEN__GRPC", "127.0.0.1:0")
        .env("TOGI_LISTEN__ADMIN", "127.0.0.1:0")
        .env("TOGI_BASES__DEMO__URL", base.as_str());
    if name == "trainer" {
        command.env("TOGI_DATA_PREP", "http://127.0.0.1:1");
    }
    command
}

/// Returns whether a process runs; one that ended and was not reaped counts as gone.
fn runs(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]);
    !matches!(state, None | Some(b'Z' | b'X'))
}

/// Waits until `togi up` notes its nats-server and returns that process.
fn nats_of(data: &Path) -> u64 {
    poll_until("the state of togi up", || {
        let text = std::fs::read_to_string(data.join("up.json")).ok()?;
        let state: Value = serde_json::from_str(&text).ok()?;
        state["nats"]["pid"].as_u64()
    })
}

#[test]
fn a_store_that_refuses_ends_the_start_at_once() {
    let s3 = S3::start();
    let cases = [
        (
            ("AWS_ALLOW_HTTP", "false"),
            USAGE,
            "set allow_http = \"true\"",
        ),
        (
            ("AWS_SECRET_ACCESS_KEY", "other"),
            REFUSED,
            "refuses our credentials",
        ),
        (("AWS_ACCESS_KEY_ID", "other"), REFUSED, "AWS_ACCESS_KEY_ID"),
        (
            ("AWS_CONDITIONAL_PUT", "disabled"),
            REFUSED,
            "If-None-Match",
        ),
    ];
    for (changed, code, says) in cases {
        let data = tempfile::tempdir().unwrap();
        let mut command = up(data.path());
        command
            .args(["--store", "s3://togi"])
            .envs(s3.environment.iter().cloned());
        command
            .env_remove("TOGI_STORE__URL")
            .env(changed.0, changed.1);
        Started::new(command).ends(code, &["error: ", says]);
        assert!(!data.path().join("up.json").exists());
        for name in ["data-prep", "trainer", "inference"] {
            let mut command = service(name, "s3://togi", "nats://127.0.0.1:1");
            command.envs(s3.environment.iter().cloned());
            command.env(changed.0, changed.1);
            let code = if code == USAGE { CONFIGURATION } else { code };
            Started::new(command).ends(code, &[says]);
        }
    }
}

/// Starts a server with one answer to everything, and returns its address.
fn always(status: &'static str, body: String) -> String {
    let etag = None;
    answering(iter::repeat(Answer { status, etag, body }))
}

fn up_at(endpoint: &str, data: &Path) -> Command {
    let mut command = up(data);
    command.args(["--store", "s3://bucket"]).envs([
        ("AWS_ENDPOINT", endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ]);
    command
}

/// The answers of AWS that the S3 server of the tests does not give.
#[test]
fn an_answer_of_s3_that_cannot_pass_ends_the_start_at_once() {
    let cases = [
        (
            "400 Bad Request",
            "ExpiredToken",
            "",
            "credentials have expired",
        ),
        (
            "400 Bad Request",
            "AuthorizationHeaderMalformed",
            "<Region>ap-northeast-1</Region>",
            "store.options.region (or AWS_REGION) to the bucket's region, ap-northeast-1",
        ),
        (
            "301 Moved Permanently",
            "PermanentRedirect",
            "",
            "AWS_REGION",
        ),
        ("501 Not Implemented", "NotImplemented", "", "If-None-Match"),
        ("403 Forbidden", "RequestTimeTooSkewed", "", "set its clock"),
        ("404 Not Found", "NoSuchBucket", "", "no such bucket"),
    ];
    for (status, code, more, says) in cases {
        let endpoint = always(status, format!("<Error><Code>{code}</Code>{more}</Error>"));
        let data = tempfile::tempdir().unwrap();
        let exit = match code {
            "NoSuchBucket" => NOT_FOUND,
            _ => REFUSED,
        };
        Started::new(up_at(&endpoint, data.path())).ends(exit, &["error: ", says]);
    }
}

#[test]
fn a_file_system_without_hard_links_ends_the_start_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (
        folder.path().join("links.c"),
        folder.path().join("links.so"),
    );
    let text = "#include <errno.h>\n\
        int link(const char *a, const char *b) { errno = EPERM; return -1; }\n\
        int linkat(int a, const char *b, int c, const char *d, int e) { errno = EPERM; return -1; }\n";
    std::fs::write(&source, text).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status();
    assert!(built.unwrap().success());
    let data = tempfile::tempdir().unwrap();
    let mut command = up(data.path());
    command.env("LD_PRELOAD", &library);
    Started::new(command).ends(REFUSED, &["error: ", "does not allow hard links", "--data"]);
    let store = tempfile::tempdir().unwrap();
    let store = url::Url::from_directory_path(store.path()).unwrap();
    for name in ["data-prep", "trainer", "inference"] {
        let mut command = service(name, store.as_str(), "nats://127.0.0.1:1");
        command.env("LD_PRELOAD", &library);
        Started::new(command).ends(REFUSED, &["does not allow hard links", "store.url"]);
    }
}

#[test]
fn a_nats_server_that_refuses_ends_the_start_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = url::Url::from_directory_path(folder.path().join("store")).unwrap();
    let jetstream = folder.path().join("jetstream").to_str().unwrap().to_owned();
    let cases = [
        (vec![], "", "NATS runs without JetStream"),
        (
            vec!["-js", "-sd", &*jetstream, "--user", "u", "--pass", "p"],
            "",
            "nats.credentials",
        ),
        (
            vec!["-js", "-sd", &*jetstream, "--user", "u", "--pass", "p"],
            "u:q@",
            "nats.url",
        ),
    ];
    for (arguments, login, says) in cases {
        let port = free_port();
        let mut command = Command::new(nats_server_binary().unwrap());
        command
            .args(["-a", "127.0.0.1", "-p", &port.to_string()])
            .args(arguments);
        let server = Started::new(command);
        server.says("Server is ready");
        let nats = format!("nats://{login}127.0.0.1:{port}");
        let data = tempfile::tempdir().unwrap();
        let mut command = up(data.path());
        command.args(["--nats", &nats]);
        Started::new(command).ends(REFUSED, &["error: ", says]);
        for name in ["data-prep", "trainer"] {
            Started::new(service(name, store.as_str(), &nats)).ends(REFUSED, &[says]);
        }
    }
}

#[test]
fn a_store_that_may_come_is_waited_for_until_a_signal() {
    let endpoints = [
        format!("http://127.0.0.1:{}", free_port()),
        always(
            "503 Slow Down",
            "<Error><Code>SlowDown</Code></Error>".to_owned(),
        ),
    ];
    for endpoint in endpoints {
        let data = tempfile::tempdir().unwrap();
        let started = Started::new(up_at(&endpoint, data.path()));
        let nats = nats_of(data.path());
        started.says("waiting for the object store");
        started.signal("TERM");
        started.ends(INTERRUPTED, &[]);
        assert!(!runs(nats), "nats-server {nats} stayed behind");
    }
}

/// Asks a service for its jobs until the command ends with this code and these words.
fn jobs_end_with(port: u16, code: i32, says: &str) {
    let endpoint = format!("http://127.0.0.1:{port}");
    let folder = tempfile::tempdir().unwrap();
    poll_until(says, || {
        let output = Command::new(program())
            .args(["jobs", "list", "--endpoint", &endpoint])
            .env("NO_COLOR", "1")
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        (output.status.code() == Some(code) && said.contains(says)).then_some(())
    });
}

#[test]
fn a_service_that_starts_without_a_part_answers_all_the_same() {
    let (port, endpoint) = (free_port(), format!("http://127.0.0.1:{}", free_port()));
    let mut command = service("trainer", "s3://togi", "nats://127.0.0.1:1");
    command
        .env("TOGI_LISTEN__GRPC", format!("127.0.0.1:{port}"))
        .envs([
            ("AWS_ENDPOINT", &*endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
        ]);
    let started = Started::new(command);
    jobs_end_with(port, UNAVAILABLE, "the service is starting; it waits for: ");
    drop(started);

    let folder = tempfile::tempdir().unwrap();
    let store = url::Url::from_directory_path(folder.path()).unwrap();
    let mut command = service("trainer", store.as_str(), "nats://127.0.0.1:1");
    let port = free_port();
    command.env("TOGI_LISTEN__GRPC", format!("127.0.0.1:{port}"));
    let _started = Started::new(command);
    jobs_end_with(port, 0, "no jobs yet");
}

#[test]
fn a_second_signal_takes_nats_server_along() {
    for name in ["TERM", "INT"] {
        let data = tempfile::tempdir().unwrap();
        let started = Started::new(up(data.path()));
        started.says("ready; Ctrl-C stops");
        let nats = nats_of(data.path());
        // A stopped process cannot end in good order, so the first signal is not enough.
        signal("STOP", nats);
        started.signal(name);
        started.says("a second signal ends the process at once");
        started.signal(name);
        started.ends(INTERRUPTED, &[]);
        let left = runs(nats);
        if left {
            signal("KILL", nats);
        }
        assert!(!left, "nats-server {nats} stayed behind");
    }
}
