//! The gRPC server of a process that is starting: it says what the process waits for, so that no
//! call hangs, and answers questions for its health.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;

use crate::error::{Error, Result};
use crate::life::readiness::Readiness;
use crate::rpc::server::LIVENESS;

/// How long connections may take to end when the process has started.
const GRACE: Duration = Duration::from_secs(1);

/// Answers every call with `UNAVAILABLE` until the work is done; returns the listener and the
/// work's result.
///
/// # Errors
/// When the listener fails.
pub async fn serve<T>(
    listener: TcpListener,
    readiness: &Readiness,
    work: impl Future<Output = T>,
) -> Result<(TcpListener, T)> {
    let listener = Arc::new(listener);
    let accepting = Arc::clone(&listener);
    let incoming = futures::stream::unfold(accepting, |listener| async move {
        let accepted = listener.accept().await;
        Some((accepted.map(|(stream, _)| stream), listener))
    });
    let (reporter, health) = tonic_health::server::health_reporter();
    let alive = ServingStatus::Serving;
    reporter.set_service_status(LIVENESS, alive).await;
    let waiting = ServingStatus::NotServing;
    reporter.set_service_status("", waiting).await;
    let readiness = readiness.clone();
    let refuse = move || async move {
        let mut waiting = readiness.waiting_for();
        waiting.extend(readiness.away());
        let waiting = waiting.join(", ");
        Status::unavailable(format!("the service is starting; it waits for: {waiting}"))
            .into_http::<Body>()
    };
    let router = Routes::new(health).into_axum_router().fallback(refuse);
    let started = CancellationToken::new();
    let serving = Server::builder()
        .add_routes(Routes::from(router))
        .serve_with_incoming_shutdown(incoming, started.clone().cancelled_owned());
    let done = {
        tokio::pin!(serving);
        tokio::select! {
            done = work => {
                started.cancel();
                // An idle connection ends at once; its client connects again.
                let _ = timeout(GRACE, serving).await;
                done
            }
            failed = &mut serving => {
                failed?;
                return Err(Error::unavailable("the gRPC port failed"));
            }
        }
    };
    let listener = Arc::into_inner(listener);
    let listener = listener.ok_or_else(|| Error::internal("a listener is still in use"))?;
    Ok((listener, done))
}
