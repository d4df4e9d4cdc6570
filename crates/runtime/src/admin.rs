//! The admin port: metrics, liveness and readiness. A process is ready when every latch has been dropped and it is not
//! stopping; gRPC health says the same.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router, extract::State, http::StatusCode, http::header, response::IntoResponse, routing::get,
};
use tokio::{net::TcpListener, sync::watch};

use crate::{Class, Error, Result, Stopper, telemetry};

/// Whether the process can do its work: true when no latch is held and it is not stopping.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    latches: BTreeMap<String, usize>,
    stopping: bool,
}

impl Waiting {
    fn ready(&self) -> bool {
        self.latches.is_empty() && !self.stopping
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Returns a readiness without latches: ready.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Waiting::default())))
    }

    /// Returns a latch: not ready until it is dropped. The name says what is waited for.
    #[must_use = "dropping the latch says that the work is done"]
    pub fn latch(&self, name: impl Into<String>) -> Latch {
        let name = name.into();
        self.0
            .send_modify(|waiting| *waiting.latches.entry(name.clone()).or_default() += 1);
        Latch {
            readiness: self.clone(),
            name,
        }
    }

    /// Returns whether the process is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.borrow().ready()
    }

    /// Returns the names of the latches that are held.
    #[must_use]
    pub fn waiting_for(&self) -> Vec<String> {
        self.0.borrow().latches.keys().cloned().collect()
    }

    /// Says that the process is stopping: never ready again.
    pub fn stopping(&self) {
        self.0.send_modify(|waiting| waiting.stopping = true);
    }

    /// Waits until the process is ready.
    pub async fn ready(&self) {
        self.until(true).await;
    }

    /// Waits until readiness has this value.
    pub async fn until(&self, ready: bool) {
        let mut receiver = self.0.subscribe();
        // The sender lives in `self`: the channel cannot close while we wait.
        let _ = receiver.wait_for(|waiting| waiting.ready() == ready).await;
    }
}

/// Holds readiness back until it is dropped.
#[derive(Debug)]
pub struct Latch {
    readiness: Readiness,
    name: String,
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.readiness.0.send_modify(|waiting| {
            if let Some(count) = waiting.latches.get_mut(&self.name) {
                *count -= 1;
                if *count == 0 {
                    waiting.latches.remove(&self.name);
                }
            }
        });
    }
}

/// Serves `/metrics`, `/livez` and `/readyz` until the stopper stops.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, readiness: Readiness, stopper: Stopper) -> Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(readiness);
    let serve = axum::serve(listener, router).into_future();
    // Not axum's graceful end: it waits for idle scrapers' connections without limit.
    match stopper.run(serve).await {
        None | Some(Ok(())) => Ok(()),
        Some(Err(error)) => {
            Err(Error::new(Class::Unavailable, "the admin port failed").with_source(error))
        }
    }
}

async fn metrics() -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        telemetry::metrics_text(),
    )
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    if readiness.is_ready() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let names = readiness.waiting_for();
    let text = if names.is_empty() {
        "stopping".to_owned()
    } else {
        names.join(", ")
    };
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("not ready: {text}\n"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_every_latch_is_dropped_and_never_after_stopping() {
        let readiness = Readiness::new();
        let (one, two) = (readiness.latch("store"), readiness.latch("store"));
        drop(one);
        assert_eq!(readiness.waiting_for(), ["store"]);
        assert!(!readiness.is_ready());
        drop(two);
        readiness.ready().await;
        readiness.stopping();
        readiness.until(false).await;
        assert!(!readiness.is_ready());
    }
}
