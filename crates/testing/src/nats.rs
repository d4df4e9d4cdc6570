//! A nats-server as a child process.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use togi_runtime::config::NatsConfig;

use crate::wait::{free_port, poll};

/// Returns the nats-server to run: `TOGI_NATS_SERVER`, else the one on `PATH`, else the workspace's
/// `.tools/bin/nats-server`.
#[must_use]
pub fn nats_server_binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("TOGI_NATS_SERVER").filter(|named| !named.is_empty()) {
        return Some(PathBuf::from(named));
    }
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&on_path).map(|folder| folder.join("nats-server"));
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.tools/bin/nats-server");
    on_path
        .chain([PathBuf::from(tools)])
        .find(|path| path.is_file())
}

/// A nats-server on a free port, with its data in a temporary folder; killed on drop.
#[derive(Debug)]
pub struct NatsServer {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

impl NatsServer {
    /// Starts a server.
    ///
    /// # Panics
    /// If there is no nats-server, or it does not start.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut server = Self {
            folder,
            port: 0,
            child: None,
        };
        // Another process may take the port before the server binds it.
        for _ in 0..5 {
            server.port = free_port();
            if server.try_resume() {
                return server;
            }
        }
        panic!(
            "nats-server does not start; its log is in {}",
            server.log().display()
        );
    }

    /// Returns the server's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Returns a configuration with short times: leases of 2 s, retries after 50 ms.
    #[must_use]
    pub fn config(&self) -> NatsConfig {
        NatsConfig {
            ack_wait_seconds: 2.0,
            retry_delay_seconds: 0.05,
            ..NatsConfig::at(self.url())
        }
    }

    /// Kills the server (SIGKILL) and keeps its data.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Restarts the server on the same port with the same data.
    ///
    /// # Panics
    /// If it does not start.
    pub fn resume(&mut self) {
        assert!(
            self.try_resume(),
            "nats-server does not start again; its log is in {}",
            self.log().display()
        );
    }

    /// Stops the server without ending it (SIGSTOP): it holds its connections and answers nothing.
    ///
    /// # Panics
    /// If it does not run.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets a paused server go on (SIGCONT).
    ///
    /// # Panics
    /// If it does not run.
    pub fn go_on(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("the server runs");
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(sent.expect("kill runs").success(), "the server is gone");
    }

    /// Deletes all JetStream data. Call [`NatsServer::kill`] first.
    ///
    /// # Panics
    /// If the folder cannot be deleted.
    pub fn wipe(&self) {
        assert!(self.child.is_none(), "kill the server before its data");
        let data = self.folder.path().join("data");
        if data.exists() {
            fs::remove_dir_all(data).expect("JetStream's folder can be deleted");
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn try_resume(&mut self) -> bool {
        let binary = nats_server_binary().expect(
            "tests need nats-server 2.14 or newer: set TOGI_NATS_SERVER, put it on PATH, or run `make test`, which fetches it",
        );
        let path = self.folder.path();
        let configuration = format!(
            "listen: \"127.0.0.1:{}\"\njetstream {{ store_dir: {:?}, sync_interval: always }}\n",
            self.port,
            path.join("data"),
        );
        fs::write(path.join("nats.conf"), configuration).expect("the configuration can be written");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .expect("a log");
        let child = Command::new(&binary)
            .arg("-c")
            .arg(path.join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be run: {error}", binary.display()));
        let child = self.child.insert(child);
        let started = poll(|| {
            if child.try_wait().ok().flatten().is_some() {
                return Some(false);
            }
            TcpStream::connect(("127.0.0.1", self.port))
                .ok()
                .map(|_| true)
        });
        if started != Some(true) {
            self.kill();
        }
        started == Some(true)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}
