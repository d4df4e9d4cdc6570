//! The gRPC server: bounded in size, number and time, traced, with health and reflection. At the
//! stop, running calls have a deadline; tonic alone would wait for them without limit.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::IntoResponse;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::RoutesBuilder;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::Service;

use crate::error::{Error, Result};
use crate::life::readiness::Readiness;
use crate::life::stop::Stopper;
use crate::rpc::deadline::DeadlineLayer;
use crate::rpc::trace::TraceLayer;
use crate::rpc::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};

/// The time for running calls after the stop.
const GRACE: Duration = Duration::from_secs(15);
/// Most calls of one connection: more than an engine has places and a queue, so that a full engine
/// refuses a call, with a time to come back, instead of HTTP/2 holding it back in its client.
const MAX_CONCURRENT_STREAMS: u32 = 1024;
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// The services that a process offers at its port.
#[derive(Debug, Default)]
pub struct Services {
    routes: RoutesBuilder,
    names: Vec<&'static str>,
}

impl Services {
    /// Returns an empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a service. Its messages may have 4 MiB unless it was made with
    /// `max_decoding_message_size`.
    pub fn add<S>(&mut self, service: S) -> &mut Self
    where
        S: Service<http::Request<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        self.routes.add_service(service);
        self.names.push(S::NAME);
        self
    }

    /// Returns the names of the services added.
    #[must_use]
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// Adds health and reflection.
    fn complete(mut self) -> Result<(RoutesBuilder, HealthReporter, Vec<&'static str>)> {
        let wrong = |error: tonic_reflection::server::Error| {
            Error::internal("reflection cannot be set up").with_source(error)
        };
        let builder = || {
            let mut builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(togi_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
            // Reflection shows only the services of this process.
            for name in &self.names {
                builder = builder.with_service_name(*name);
            }
            builder.with_service_name("grpc.health.v1.Health")
        };
        let v1 = builder().build_v1().map_err(wrong)?;
        let v1alpha = builder().build_v1alpha().map_err(wrong)?;
        let (reporter, health) = tonic_health::server::health_reporter();
        self.routes
            .add_service(v1)
            .add_service(v1alpha)
            .add_service(health);
        Ok((self.routes, reporter, self.names))
    }
}

/// Serves until the stopper stops, then waits for running calls for a bounded time.
///
/// # Errors
/// `Unavailable` if the listener fails.
pub async fn serve(
    listener: TcpListener,
    services: Services,
    readiness: &Readiness,
    stopper: &Stopper,
) -> Result<()> {
    let address = listener.local_addr()?;
    let (routes, reporter, names) = services.complete()?;
    tracing::info!(%address, services = names.join(", "), "serving gRPC");
    let server = Server::builder()
        .layer(TraceLayer::new())
        .layer(DeadlineLayer)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_connection_age(Duration::from_secs(3600))
        .max_connection_age_grace(Duration::from_secs(3600))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_routes(routes.routes());
    let incoming = TcpListenerStream::new(listener);
    let incoming = futures::StreamExt::map(incoming, |connection| {
        // An answer's tokens are small messages; Nagle's algorithm would delay them.
        connection.inspect(|stream| {
            let _ = stream.set_nodelay(true);
        })
    });
    let serving = server.serve_with_incoming_shutdown(incoming, stopper.stopped());
    let deadline = async {
        stopper.stopped().await;
        readiness.stopping();
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = serving => {
            readiness.stopping();
            Ok(served?)
        }
        () = deadline => {
            tracing::warn!("gRPC calls did not end in time");
            Ok(())
        }
        () = report(&reporter, &names, readiness) => Ok(()),
    }
}

/// The health service's name for liveness, which stays `SERVING` while NATS or the store is away,
/// so that nothing restarts the process.
pub const LIVENESS: &str = "liveness";

/// Reports readiness over gRPC health.
async fn report(reporter: &HealthReporter, names: &[&'static str], readiness: &Readiness) {
    let alive = ServingStatus::Serving;
    reporter.set_service_status(LIVENESS, alive).await;
    loop {
        let ready = readiness.is_ready();
        let status = if ready {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for name in std::iter::once(&"").chain(names) {
            reporter.set_service_status(*name, status).await;
        }
        readiness.until(!ready).await;
    }
}
