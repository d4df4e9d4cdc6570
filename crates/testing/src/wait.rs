//! Waiting for a condition or a future, without a fixed sleep.

use std::net::TcpListener;
use std::time::{Duration, Instant};

/// The longest wait of this file's functions.
pub const PATIENCE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(10);

/// Waits until a condition holds.
///
/// # Panics
/// If the condition, named by `what`, does not hold within [`PATIENCE`].
pub async fn wait_until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited too long: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits for a future.
///
/// # Panics
/// If it takes longer than [`PATIENCE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("waited too long: {what}"))
}

/// Blocks until `condition` returns a value; `None` after [`PATIENCE`].
pub fn poll<T>(mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(value) = condition() {
            return Some(value);
        }
        std::thread::park_timeout(PAUSE);
    }
    None
}

/// Blocks until `condition` returns a value.
///
/// # Panics
/// If it returns no value within [`PATIENCE`].
pub fn poll_until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    poll(condition).unwrap_or_else(|| panic!("waited too long: {what}"))
}

/// Returns a port that was free when checked.
///
/// # Panics
/// If no port is free.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr();
    address.expect("a bound listener has an address").port()
}
