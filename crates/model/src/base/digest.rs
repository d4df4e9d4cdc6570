//! A base's digest, made by threads of its own while others read the same files.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

use crate::canonical;
use crate::error::{Error, Result};
use crate::mapped::Bytes;

/// Bytes that are hashed before a thread looks whether it shall stop.
const AT_ONCE: usize = 16 << 20;

/// The digest of some files; whoever asks for it waits for it.
pub(super) struct Digest {
    value: OnceLock<String>,
    hashing: Mutex<Vec<Hashing>>,
    stop: Arc<AtomicBool>,
}

/// A file's name, and the thread that hashes it.
type Hashing = (String, JoinHandle<String>);

impl Digest {
    /// Begins to hash files, each in a thread.
    pub(super) fn begin(files: Vec<(String, Bytes)>) -> Result<Self> {
        let digest = Self {
            value: OnceLock::new(),
            hashing: Mutex::default(),
            stop: Arc::default(),
        };
        for (name, bytes) in files {
            let stop = Arc::clone(&digest.stop);
            let thread = std::thread::Builder::new().name("digest".into());
            let started = thread.spawn(move || hash(&bytes, &stop));
            let thread = started.map_err(|source| Error::file(&name, source))?;
            digest.lock().push((name, thread));
        }
        Ok(digest)
    }

    /// That of no files.
    pub(super) fn none() -> Self {
        Self {
            value: OnceLock::from(String::new()),
            hashing: Mutex::default(),
            stop: Arc::default(),
        }
    }

    pub(super) fn value(&self) -> &str {
        self.value.get_or_init(|| {
            let hashing = std::mem::take(&mut *self.lock());
            let mut files: Vec<_> = hashing.into_iter().map(ended).collect();
            files.sort();
            let lines: String = files
                .iter()
                .map(|(name, sha256)| format!("{sha256}  {name}\n"))
                .collect();
            canonical::sha256_hex(lines.as_bytes())
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Hashing>> {
        self.hashing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Digest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let hashing = std::mem::take(&mut *self.lock());
        // What a thread says on the way out is of no use to anybody.
        hashing
            .into_iter()
            .for_each(|(_, thread)| drop(thread.join()));
    }
}

fn ended((name, thread): Hashing) -> (String, String) {
    match thread.join() {
        Ok(sha256) => (name, sha256),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// SHA-256 as hex; nothing of use if it was stopped.
fn hash(bytes: &[u8], stop: &AtomicBool) -> String {
    let mut hasher = Sha256::new();
    for part in bytes.chunks(AT_ONCE) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        hasher.update(part);
    }
    hex::encode(hasher.finalize())
}
