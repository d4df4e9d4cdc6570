//! The admin port: metrics, liveness and readiness.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::error::{Class, Error, Result};
use crate::life::readiness::Readiness;
use crate::life::stop::Stopper;
use crate::telemetry;

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
    // axum's graceful shutdown is not used, because it waits for idle connections without limit.
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
    let away: String = readiness
        .away()
        .into_iter()
        .map(|line| line + "\n")
        .collect();
    if readiness.is_ready() {
        return (StatusCode::OK, format!("ok\n{away}"));
    }
    let names = readiness.waiting_for();
    let text = if names.is_empty() {
        "stopping".to_owned()
    } else {
        names.join(", ")
    };
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("not ready: {text}\n{away}"),
    )
}
