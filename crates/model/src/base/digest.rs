//! A base's digest, computed by threads while others read the same files.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use togi_common::{Digest, Hasher};

use crate::error::{Error, Result};
use crate::mapped::Bytes;

/// Bytes that a thread hashes between two looks at its stop flag.
const AT_ONCE: usize = 16 << 20;

/// The digest of some files; a reader waits until it is there.
pub(super) struct BaseDigest {
    value: OnceLock<String>,
    hashing: Mutex<Vec<Hashing>>,
    stop: Arc<AtomicBool>,
}

/// A file's name, and the thread that hashes it.
type Hashing = (String, JoinHandle<Digest>);

impl BaseDigest {
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
            digest.hashing.lock().push((name, thread));
        }
        Ok(digest)
    }

    /// The digest of a base without files: empty.
    pub(super) fn none() -> Self {
        Self {
            value: OnceLock::from(String::new()),
            hashing: Mutex::default(),
            stop: Arc::default(),
        }
    }

    pub(super) fn value(&self) -> &str {
        self.value.get_or_init(|| {
            let hashing = std::mem::take(&mut *self.hashing.lock());
            let mut files: Vec<_> = hashing.into_iter().map(ended).collect();
            files.sort();
            let lines: String = files
                .iter()
                .map(|(name, sha256)| format!("{sha256}  {name}\n"))
                .collect();
            Digest::of(lines).to_string()
        })
    }
}

impl Drop for BaseDigest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let hashing = std::mem::take(&mut *self.hashing.lock());
        // A panic of a thread changes nothing here: its digest is not needed any more.
        hashing
            .into_iter()
            .for_each(|(_, thread)| drop(thread.join()));
    }
}

fn ended((name, thread): Hashing) -> (String, Digest) {
    match thread.join() {
        Ok(sha256) => (name, sha256),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Returns the SHA-256; of the bytes so far if it was stopped.
fn hash(bytes: &[u8], stop: &AtomicBool) -> Digest {
    let mut hasher = Hasher::new();
    for part in bytes.chunks(AT_ONCE) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        hasher.update(part);
    }
    hasher.finish()
}
