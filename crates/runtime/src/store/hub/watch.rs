//! Ends a transfer when the hub is silent for too long: the client itself would wait for ever.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hf_hub::progress::{DownloadEvent, Progress, ProgressEvent, ProgressHandler};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// What a transfer has shown of itself.
pub(super) struct Watch {
    patience: Duration,
    seen: Arc<Seen>,
}

struct Seen {
    last: Mutex<Instant>,
    announced: AtomicU64,
}

impl ProgressHandler for Seen {
    fn on_progress(&self, event: &ProgressEvent) {
        *self.last.lock() = Instant::now();
        if let ProgressEvent::Download(DownloadEvent::Start { total_bytes, .. }) = event {
            self.announced.store(*total_bytes, Ordering::Relaxed);
        }
    }
}

impl Watch {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            patience,
            seen: Arc::new(Seen {
                last: Mutex::new(Instant::now()),
                announced: AtomicU64::new(0),
            }),
        }
    }

    /// Returns the handler that the client tells its progress.
    pub(super) fn progress(&self) -> Progress {
        Arc::clone(&self.seen).into()
    }

    /// Returns the size of a file as the hub announced it; 0 if it did not.
    pub(super) fn announced(&self) -> u64 {
        self.seen.announced.load(Ordering::Relaxed)
    }

    /// Waits for work; `None` if there was no progress for as long as the patience lasts.
    pub(super) async fn over<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            let end = *self.seen.last.lock() + self.patience;
            tokio::select! {
                done = &mut work => return Some(done),
                () = sleep_until(end) => {
                    if Instant::now() >= *self.seen.last.lock() + self.patience {
                        return None;
                    }
                }
            }
        }
    }
}
