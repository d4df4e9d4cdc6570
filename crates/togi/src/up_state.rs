//! `up.json` in the data folder: the state of a running `togi up`, for clients and for the next
//! start.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::embedded;
use crate::error::{Error, Result};

const STATE_FILE: &str = "up.json";
const LOCK_FILE: &str = "up.lock";

/// A running `togi up`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct UpState {
    /// Its process.
    pub pid: u32,
    /// Where its services answer.
    pub endpoint: String,
    /// Where its metrics and health are.
    pub admin: String,
    /// The object store's URL.
    pub store: String,
    /// Its NATS server.
    pub nats: NatsState,
}

/// A NATS server, either started by `togi up` or already running.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct NatsState {
    /// Its process; 0 for a server that was already running.
    pub pid: u32,
    /// When that process started, as the system writes it: the pid may since belong to another
    /// process.
    pub start_time: String,
    /// Where it answers.
    pub url: String,
}

impl NatsState {
    /// Returns the state of a server that `togi up` did not start.
    pub(crate) fn elsewhere(url: String) -> Self {
        Self {
            pid: 0,
            start_time: String::new(),
            url,
        }
    }
}

impl UpState {
    /// Returns the state of the `togi up` that holds the folder; `None` if none runs.
    pub fn of_running(data: &Path) -> Option<Self> {
        let lock = File::open(data.join(LOCK_FILE)).ok()?;
        // A shared lock, so that two clients do not mistake each other for a server.
        matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock))
            .then(|| Self::read(data))
            .flatten()
    }

    /// Returns the last written state, if it can be read.
    pub fn read(data: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(data.join(STATE_FILE)).ok()?).ok()
    }

    /// Writes the state; a reader sees either the old or the new one.
    pub fn write(&self, data: &Path) -> Result<()> {
        let path = data.join(STATE_FILE);
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|error| Error::file(&path, error.into()))?;
        text.push(b'\n');
        embedded::replace(&path, &text).map_err(|error| Error::file(&path, error))
    }

    /// Removes the state.
    pub fn remove(data: &Path) {
        // A state that stays is harmless: readers check the lock.
        let _ = fs::remove_file(data.join(STATE_FILE));
    }
}

/// A data folder that this process holds until dropped.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    _lock: File,
}

impl DataFolder {
    /// Creates the folder and locks it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while another `togi up` has it, [`Error::File`] when it cannot be
    /// written.
    pub fn take(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(|error| Error::file(path, error))?;
        let path = fs::canonicalize(path).map_err(|error| Error::file(path, error))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|error| Error::file(&lock_path, error))?;
        lock_patiently(&lock).map_err(|error| match error {
            TryLockError::WouldBlock => Error::Unavailable(in_use(&path)),
            TryLockError::Error(error) => Error::file(&lock_path, error),
        })?;
        Ok(Self { path, _lock: lock })
    }

    /// Returns the folder's absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Locks with a few tries: a client that checks for a server holds the lock for an instant.
fn lock_patiently(lock: &File) -> std::result::Result<(), TryLockError> {
    let mut outcome = lock.try_lock();
    for _ in 0..20 {
        if !matches!(outcome, Err(TryLockError::WouldBlock)) {
            break;
        }
        std::thread::yield_now();
        outcome = lock.try_lock();
    }
    outcome
}

fn in_use(path: &Path) -> String {
    let shown = path.display();
    match UpState::read(path) {
        Some(up) => format!(
            "another `togi up` (process {}, {}) uses the data folder {shown}; stop it, or choose another folder with --data",
            up.pid, up.endpoint
        ),
        None => {
            format!(
                "another `togi up` uses the data folder {shown}; stop it, or choose another folder with --data"
            )
        }
    }
}

/// Returns when a process started, as the system writes it; `None` if it does not run.
pub fn start_time(pid: u32) -> Option<String> {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The second field is the name in brackets and may contain anything; the start time is the
        // twentieth field after it. A zombie counts as ended.
        Ok(stat) => {
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            if fields.first() == Some(&"Z") {
                None
            } else {
                fields.get(19).map(|time| (*time).to_owned())
            }
        }
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && Path::new("/proc/self/stat").exists() =>
        {
            None
        }
        Err(_) => ps(pid, "lstart="),
    }
}

/// Returns a process's command line, joined by spaces; `None` if it does not run.
pub fn command_line(pid: u32) -> Option<String> {
    match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(words) => Some(
            String::from_utf8_lossy(&words)
                .trim_end_matches('\0')
                .replace('\0', " "),
        ),
        Err(_) if Path::new("/proc/self/stat").exists() => None,
        Err(_) => ps(pid, "command="),
    }
}

/// Asks `ps`, for systems without /proc.
fn ps(pid: u32, column: &str) -> Option<String> {
    let output = std::process::Command::new("ps")
        .args(["-o", column, "-p", &pid.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> UpState {
        UpState {
            pid: 1,
            endpoint: "http://127.0.0.1:1".into(),
            admin: "http://127.0.0.1:2".into(),
            store: "file:///x".into(),
            nats: NatsState {
                pid: 2,
                start_time: "3".into(),
                url: "nats://127.0.0.1:4".into(),
            },
        }
    }

    #[test]
    fn a_folder_has_one_owner_and_clients_see_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(UpState::of_running(folder.path()), None);
        let taken = DataFolder::take(folder.path()).unwrap();
        state().write(taken.path()).unwrap();
        assert_eq!(UpState::of_running(folder.path()), Some(state()));
        let error = DataFolder::take(folder.path()).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("process 1"), "{error}");
        drop(taken);
        assert_eq!(
            UpState::of_running(folder.path()),
            None,
            "left behind by one that died"
        );
        DataFolder::take(folder.path()).unwrap();
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let me = std::process::id();
        assert_eq!(start_time(me), start_time(me));
        assert!(start_time(me).is_some());
        assert!(command_line(me).unwrap().contains("togi"));
        assert_eq!(start_time(u32::MAX / 2), None);
    }
}
