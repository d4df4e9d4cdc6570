//! The gRPC client: a lazy connection that sends the trace context, and the health check.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as HealthStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::error::{Class, Error, Result, scrub};
use crate::rpc::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use crate::telemetry;

/// Asks the server at an address whether it is ready; an address of all interfaces means this
/// machine.
///
/// # Errors
/// `Unavailable` if it is not ready or does not answer within five seconds.
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

/// A client's connection that sends the trace context.
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

/// Returns a channel to an endpoint such as `http://127.0.0.1:7670`.
///
/// It connects at the first call and reconnects after a break. A generated client takes it:
/// `TrainerServiceClient::new(channel)`.
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
