//! The deployed system on one machine: one process per service, a nats-server and a real S3 server.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use togi_testing::{free_port, poll, poll_until};

use crate::system::{program, try_togi, workspace};

/// Returns the path of a tool that `tools/install` unpacked.
///
/// # Panics
/// If the tool is missing.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    let path = workspace().join(".tools/bin").join(name);
    let found = if path.exists() {
        path
    } else {
        PathBuf::from(name)
    };
    let starts = Command::new(&found)
        .arg("--help")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(starts.is_ok(), "{name} is missing: tools/install test");
    found
}

/// A child process that is killed on drop.
pub(crate) struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::File::create(log).expect("the log's file");
        let errors = log.try_clone().expect("the log's file, twice");
        let child = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn();
        Self(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.0.id().to_string()])
            .status();
        assert!(sent.expect("kill runs").success(), "the process is gone");
    }

    /// Sends SIGTERM and waits for the exit.
    ///
    /// # Panics
    /// If the process exits with a failure.
    fn stop(mut self) {
        self.signal("-TERM");
        let status = poll_until("the process to stop", || self.0.try_wait().ok().flatten());
        assert!(status.success(), "the process ended with {status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A SeaweedFS server with one bucket, `togi`.
pub struct S3 {
    server: Process,
    _folder: TempDir,
    /// Environment variables for a client.
    pub environment: Vec<(String, String)>,
}

impl S3 {
    /// Starts a server and creates the bucket.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let weed = tool("weed");
        let identities = folder.path().join("s3.json");
        let text = r#"{"identities":[{"name":"togi","credentials":[{"accessKey":"togi-key",
            "secretKey":"togi-secret"}],"actions":["Admin","Read","List","Tagging","Write"]}]}"#;
        std::fs::write(&identities, text).expect("the identities");
        // Each port needs another one 10,000 above it, so only low ports are possible.
        let base = loop {
            let port = 20_000 + free_port() % 20_000;
            let all = [0, 1, 2, 3, 10_000, 10_001, 10_002, 10_003];
            if all
                .iter()
                .all(|add| std::net::TcpListener::bind(("127.0.0.1", port + add)).is_ok())
            {
                break port;
            }
        };
        let (master, s3) = (base, base + 3);
        let server = Process::start(
            Command::new(&weed)
                .args([
                    "server",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    "-master.telemetry=false",
                ])
                .arg(format!("-dir={}", folder.path().display()))
                .arg(format!("-master.port={master}"))
                .arg(format!("-volume.port={}", base + 1))
                .arg(format!("-filer.port={}", base + 2))
                .args(["-volume.max=8", "-master.volumeSizeLimitMB=64", "-s3"])
                .arg(format!("-s3.port={s3}"))
                .args(["-s3.port.iceberg=0", "-s3.port.lance=0"])
                .arg(format!("-s3.config={}", identities.display())),
            &folder.path().join("weed.log"),
        );
        poll_until("the S3 server", || {
            std::net::TcpStream::connect(("127.0.0.1", s3)).ok()
        });
        // The request fails until a volume exists, and also if the bucket exists. Only the list of
        // buckets tells the two apart.
        poll_until("the S3 server's bucket", || {
            bucket_exists(&weed, master).then_some(())
        });
        let environment = [
            ("AWS_ACCESS_KEY_ID", "togi-key".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "togi-secret".to_owned()),
            ("AWS_ENDPOINT", format!("http://127.0.0.1:{s3}")),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("TOGI_STORE__URL", "s3://togi".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        Self {
            server,
            _folder: folder,
            environment,
        }
    }
}

impl S3 {
    /// Stops the server without ending it (SIGSTOP): it holds its connections and answers nothing.
    pub fn pause(&self) {
        self.server.signal("-STOP");
    }

    /// Lets a paused server go on (SIGCONT).
    pub fn go_on(&self) {
        self.server.signal("-CONT");
    }
}

/// Creates the bucket `togi` and returns whether the server lists it.
fn bucket_exists(weed: &Path, master: u16) -> bool {
    let shell = Command::new(weed)
        .args(["shell", &format!("-master=127.0.0.1:{master}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut shell = shell.expect("weed's shell starts");
    let mut commands = shell.stdin.take().expect("it was asked for");
    // The shell may exit before it reads its input; the list is then empty.
    let _ = std::io::Write::write_all(
        &mut commands,
        b"s3.bucket.create -name togi\ns3.bucket.list\n",
    );
    drop(commands);
    let output = shell.wait_with_output().expect("weed's shell ends");
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    list.lines()
        .any(|line| line.split_whitespace().next() == Some("togi"))
}

/// The three services as processes.
pub struct Cluster {
    services: Vec<Process>,
    _nats: togi_testing::NatsServer,
    _s3: S3,
    folder: TempDir,
    data_prep: String,
    trainer: String,
    inference: String,
}

impl Cluster {
    /// Starts the services with the demo's base; they export traces to `otlp_endpoint`.
    pub fn start(otlp_endpoint: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let nats = togi_testing::NatsServer::start();
        let s3 = S3::start();
        let base = url::Url::from_directory_path(workspace().join("demo/base")).expect("a path");
        let ports: Vec<u16> = (0..6).map(|_| free_port()).collect();
        let address = |index: usize| format!("http://127.0.0.1:{}", ports[index]);
        let services = ["data-prep", "trainer", "inference"]
            .iter()
            .enumerate()
            .map(|(index, name)| {
                let mut command = Command::new(program().with_file_name(format!("togi-{name}")));
                command
                    .envs(s3.environment.iter().map(|(name, value)| (name, value)))
                    .env("TOGI_NATS__URL", nats.url())
                    .env("TOGI_LISTEN__GRPC", format!("127.0.0.1:{}", ports[index]))
                    .env(
                        "TOGI_LISTEN__ADMIN",
                        format!("127.0.0.1:{}", ports[index + 3]),
                    )
                    .env("TOGI_TELEMETRY__OTLP_ENDPOINT", otlp_endpoint)
                    .env("TOGI_TELEMETRY__LOG_FORMAT", "json")
                    .env("TOGI_BASES__DEMO__URL", base.as_str());
                if *name == "trainer" {
                    command.env("TOGI_DATA_PREP", address(0));
                }
                Process::start(&mut command, &folder.path().join(format!("{name}.log")))
            })
            .collect();
        let cluster = Self {
            services,
            _nats: nats,
            _s3: s3,
            data_prep: address(0),
            trainer: address(1),
            inference: address(2),
            folder,
        };
        std::fs::write(
            cluster.folder.path().join("togi.toml"),
            format!(
                "data_prep = \"{}\"\ntrainer = \"{}\"\ninference = \"{}\"\n",
                cluster.data_prep, cluster.trainer, cluster.inference
            ),
        )
        .expect("the client's configuration");
        let ready = poll(|| ports[3..].iter().all(|port| is_ready(*port)).then_some(()));
        assert!(
            ready.is_some(),
            "waited a minute for the services:\n{}",
            cluster.logs()
        );
        cluster
    }

    /// Runs `togi` against these services and returns what it printed.
    pub fn togi(&self, arguments: &[&str]) -> String {
        let output = try_togi(self.folder.path(), None, arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "togi {arguments:?}: {errors}\n{}",
            self.logs()
        );
        String::from_utf8(output.stdout).expect("togi prints UTF-8")
    }

    /// Returns the services' logs.
    #[must_use]
    pub fn logs(&self) -> String {
        ["data-prep", "trainer", "inference"]
            .map(|name| {
                let log = self.folder.path().join(format!("{name}.log"));
                format!(
                    "--- {name}\n{}",
                    std::fs::read_to_string(log).unwrap_or_default()
                )
            })
            .join("\n")
    }

    /// Stops the services one by one, as a deployment does; each must exit with success.
    pub fn stop(&mut self) {
        for service in self.services.drain(..) {
            service.stop();
        }
    }
}

/// Returns whether the service behind an admin port is ready.
fn is_ready(port: u16) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut answer = String::new();
    stream.write_all(request).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}
