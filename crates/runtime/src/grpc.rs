//! The gRPC server and client as every process uses them: bounded in size, number and time, traced, with health and
//! reflection; it ends in good order and by a deadline, which tonic alone would wait for without limit.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use axum::response::IntoResponse;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Status,
    body::Body,
    server::NamedService,
    service::{Interceptor, RoutesBuilder, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Server},
};
use tonic_health::{
    ServingStatus,
    pb::{
        HealthCheckRequest, health_check_response::ServingStatus as HealthStatus,
        health_client::HealthClient,
    },
    server::HealthReporter,
};
use tower::Service;

use crate::{
    Class, Context, Error, Readiness, Result, error::scrub, rpc_trace::TraceLayer, telemetry,
};

/// How long running calls may take to end after the stop.
const GRACE: Duration = Duration::from_secs(15);
const MAX_CONCURRENT_STREAMS: u32 = 128;
const MAX_HEADER_BYTES: u32 = 16 << 10;
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// The services that a process offers at its port.
#[derive(Debug, Default)]
pub struct Services {
    routes: RoutesBuilder,
    names: Vec<&'static str>,
}

impl Services {
    /// Returns none.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a service. Its messages may have 4 MiB unless it was made with `max_decoding_message_size`.
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

    /// Health and reflection beside what the process offers.
    fn complete(mut self) -> Result<(RoutesBuilder, HealthReporter, Vec<&'static str>)> {
        let wrong = |error: tonic_reflection::server::Error| {
            Error::internal("reflection cannot be set up").with_source(error)
        };
        let builder = || {
            let mut builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(togi_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
            // Only what is served here, not all that the contract knows.
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

/// Serves until the context's stopper stops, then lets running calls end, at most for some seconds.
///
/// # Errors
/// `Unavailable` if the listener fails.
pub async fn serve(listener: TcpListener, services: Services, context: &Context) -> Result<()> {
    serve_with(listener, services, &context.readiness, &context.stopper).await
}

/// Serves as [`serve`] does, for a process that has neither bus nor store.
///
/// # Errors
/// `Unavailable` if the listener fails.
pub async fn serve_with(
    listener: TcpListener,
    services: Services,
    readiness: &Readiness,
    stopper: &crate::Stopper,
) -> Result<()> {
    let address = listener.local_addr()?;
    let (routes, reporter, names) = services.complete()?;
    tracing::info!(%address, services = names.join(", "), "serving gRPC");
    let server = Server::builder()
        .layer(TraceLayer::new())
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
        // Tokens of an answer are small and must not wait for each other.
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

/// The health service's name for a process that answers at all: what must not restart because NATS or the store is away.
pub const LIVENESS: &str = "liveness";

/// Lets gRPC health say what readiness says.
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

/// Asks the server at an address, on this machine if it is all interfaces, whether it is ready.
///
/// # Errors
/// `Unavailable` if it is not, or does not answer within five seconds.
pub async fn check(mut address: SocketAddr) -> Result<()> {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let channel = plain_channel(&format!("http://{address}"))?;
    let mut client = HealthClient::new(channel);
    let asking = client.check(HealthCheckRequest::default());
    let not = |why: &str| Error::unavailable(format!("{address} is not ready: {why}"));
    let answer = tokio::time::timeout(Duration::from_secs(5), asking).await;
    let answer = answer.map_err(|_| not("it does not answer"))?;
    let answer = answer.map_err(|status| not(status.message()))?.into_inner();
    if answer.status() == HealthStatus::Serving {
        return Ok(());
    }
    Err(not("it says so"))
}

/// A client's connection that carries the trace context along.
pub type Client = InterceptedService<Channel, Inject>;

/// Writes the current trace context into each request.
#[derive(Clone, Copy, Debug)]
pub struct Inject;

impl Interceptor for Inject {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        telemetry::inject(request.metadata_mut());
        Ok(request)
    }
}

/// Returns a connection to an endpoint such as `http://127.0.0.1:7670`; it is made at the first call, and again after it broke. A
/// client of a generated service takes it: `TrainerServiceClient::new(channel)`.
///
/// # Errors
/// `InvalidArgument` if the endpoint is no URL.
pub fn channel(endpoint: &str) -> Result<Client> {
    Ok(InterceptedService::new(plain_channel(endpoint)?, Inject))
}

/// Returns a connection as [`channel`] does, without trace context.
///
/// # Errors
/// `InvalidArgument` if the endpoint is no URL.
pub fn plain_channel(endpoint: &str) -> Result<Channel> {
    let wrong = || {
        let message = format!(
            "\"{}\" is not an endpoint such as http://127.0.0.1:7670",
            scrub(endpoint)
        );
        Error::new(Class::InvalidArgument, message).with_field("endpoint")
    };
    let parsed = url::Url::parse(endpoint).map_err(|_| wrong())?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
        return Err(wrong());
    }
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).map_err(|_| wrong())?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .tcp_nodelay(true)
        .connect_lazy())
}
