//! The server from outside: health, reflection, sizes, errors, metrics, its end.

use std::time::Duration;

use togi_proto::trainer::v1 as wire;
use togi_proto::trainer::v1::adapter_service_client::AdapterServiceClient;
use togi_proto::trainer::v1::adapter_service_server::{AdapterService, AdapterServiceServer};
use togi_proto::trainer::v1::{ListAliasesRequest, ListAliasesResponse};
use togi_runtime::process::admin;
use togi_runtime::rpc::server::Services;
use togi_runtime::{Error, Readiness, Stopper, rpc, telemetry};
use togi_testing::{wait_until, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1alpha;
use tonic_types::StatusExt as _;

/// Answers `ListAliases` with the trace that it was asked in, and refuses all else.
struct Echo;

#[tonic::async_trait]
impl AdapterService for Echo {
    async fn list_adapters(
        &self,
        _: Request<wire::ListAdaptersRequest>,
    ) -> Result<Response<wire::ListAdaptersResponse>, Status> {
        std::future::pending().await
    }

    async fn get_adapter(
        &self,
        _: Request<wire::GetAdapterRequest>,
    ) -> Result<Response<wire::GetAdapterResponse>, Status> {
        Err(Error::invalid("adapter", "adapter must be a generation or an alias").into())
    }

    async fn promote_adapter(
        &self,
        _: Request<wire::PromoteAdapterRequest>,
    ) -> Result<Response<wire::PromoteAdapterResponse>, Status> {
        Err(Error::internal("a fault")
            .with_source("with a secret")
            .into())
    }

    async fn rollback_alias(
        &self,
        _: Request<wire::RollbackAliasRequest>,
    ) -> Result<Response<wire::RollbackAliasResponse>, Status> {
        Err(Error::precondition("named nothing before").into())
    }

    async fn list_aliases(
        &self,
        _: Request<ListAliasesRequest>,
    ) -> Result<Response<ListAliasesResponse>, Status> {
        let name = telemetry::current_traceparent().unwrap_or_default();
        Ok(Response::new(ListAliasesResponse {
            aliases: vec![wire::Alias {
                name,
                ..Default::default()
            }],
        }))
    }
}

struct Running {
    endpoint: String,
    readiness: Readiness,
    stopper: Stopper,
    server: tokio::task::JoinHandle<togi_runtime::Result<()>>,
}

async fn run() -> Running {
    telemetry::init(&Default::default(), "test")
        .unwrap()
        .flush()
        .await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (readiness, stopper) = (Readiness::new(), Stopper::new());
    let mut services = Services::new();
    services.add(AdapterServiceServer::new(Echo));
    let (ready, stop) = (readiness.clone(), stopper.clone());
    let server =
        tokio::spawn(async move { rpc::server::serve(listener, services, &ready, &stop).await });
    Running {
        endpoint,
        readiness,
        stopper,
        server,
    }
}

async fn health(running: &Running, service: &str) -> Result<ServingStatus, Code> {
    let mut client = HealthClient::new(rpc::client::channel(&running.endpoint).unwrap());
    let answer = client
        .check(HealthCheckRequest {
            service: service.into(),
        })
        .await;
    answer
        .map(|answer| answer.into_inner().status())
        .map_err(|status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_what_readiness_says() {
    let running = run().await;
    let latch = running.readiness.latch("weights");
    let name = "togi.trainer.v1.AdapterService";
    wait_until("not serving", async || {
        health(&running, name).await == Ok(ServingStatus::NotServing)
    })
    .await;
    // Liveness and readiness differ: only readiness goes away.
    let alive = health(&running, rpc::server::LIVENESS).await;
    assert_eq!(alive, Ok(ServingStatus::Serving));
    let address = running.endpoint.trim_start_matches("http://");
    let address: std::net::SocketAddr = address.parse().unwrap();
    let refused = rpc::client::check(address).await.unwrap_err().to_string();
    assert!(refused.contains("is not ready: it says so"), "{refused}");
    drop(latch);
    wait_until("serving", async || {
        health(&running, "").await == Ok(ServingStatus::Serving)
    })
    .await;
    wait_until("serving by name", async || {
        health(&running, name).await == Ok(ServingStatus::Serving)
    })
    .await;
    let anywhere = ([0, 0, 0, 0], address.port()).into();
    rpc::client::check(anywhere).await.unwrap();
    assert_eq!(
        health(&running, "no.such.Service").await,
        Err(Code::NotFound)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_more_calls_than_an_engine_has_places_and_queue() {
    let running = run().await;
    let channel = rpc::client::plain_channel(&running.endpoint).unwrap();
    // A watch answers at once and stays open.
    let mut open = Vec::new();
    for _ in 0..300 {
        let mut client = HealthClient::new(channel.clone());
        let watch = client.watch(HealthCheckRequest::default());
        let watch = within("a call is answered", watch).await;
        open.push(watch.unwrap().into_inner());
    }
    drop(open);
    running.stopper.stop();
    running.server.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_what_is_served_and_only_that() {
    let running = run().await;
    let mut client = ServerReflectionClient::new(rpc::client::channel(&running.endpoint).unwrap());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = client
        .server_reflection_info(futures::stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("not a list")
    };
    let names: Vec<String> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    assert!(
        names.contains(&"togi.trainer.v1.AdapterService".to_owned()),
        "{names:?}"
    );
    assert!(
        names.contains(&"grpc.health.v1.Health".to_owned()),
        "{names:?}"
    );
    assert!(
        !names.iter().any(|name| name.contains("Inference")),
        "{names:?}"
    );
    // The older protocol, that grpcurl asks for first.
    let mut old =
        tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient::new(
            rpc::client::channel(&running.endpoint).unwrap(),
        );
    let symbol = "togi.trainer.v1.AdapterService".to_owned();
    let asked = v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(symbol);
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(asked),
    };
    let mut answers = old
        .server_reflection_info(futures::stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    assert!(answers.message().await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_arrive_with_code_and_field_and_without_their_causes() {
    let running = run().await;
    let mut client = AdapterServiceClient::new(rpc::client::channel(&running.endpoint).unwrap());
    let status = client
        .get_adapter(wire::GetAdapterRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let details = status.get_details_bad_request().unwrap();
    assert_eq!(details.field_violations[0].field, "adapter");
    let status = client
        .promote_adapter(wire::PromoteAdapterRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Internal, "a fault")
    );
    let status = client
        .rollback_alias(wire::RollbackAliasRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let big = wire::GetAdapterRequest {
        adapter: "x".repeat(5 << 20),
    };
    assert_eq!(
        client.get_adapter(big).await.unwrap_err().code(),
        Code::OutOfRange
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_goes_through_and_the_call_is_measured() {
    let running = run().await;
    let mut client = AdapterServiceClient::new(rpc::client::channel(&running.endpoint).unwrap());
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let span = telemetry::span_with_parent(
        tracing::info_span!(target: "togi_test", "ask"),
        &format!("00-{trace}-b7ad6b7169203331-01"),
    );
    let call = client.list_aliases(ListAliasesRequest {});
    let answer = tracing::Instrument::instrument(call, span)
        .await
        .unwrap()
        .into_inner();
    assert!(
        answer.aliases[0].name.contains(trace),
        "{}",
        answer.aliases[0].name
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let readiness = running.readiness.clone();
    let _latch = readiness.latch("weights");
    let admin = tokio::spawn(admin::serve(listener, readiness, running.stopper.clone()));
    let get = async |path: &str| {
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        connection.read_to_string(&mut text).await.unwrap();
        text
    };
    wait_until("the call is in the metrics", async || {
        let metrics = get("/metrics").await;
        metrics.lines().any(|line| {
            line.starts_with("rpc_server_call_duration_seconds_count")
                && line.contains("AdapterService/ListAliases")
                && line.contains("OK")
        })
    })
    .await;
    assert!(get("/livez").await.starts_with("HTTP/1.1 200"));
    let not_ready = get("/readyz").await;
    assert!(
        not_ready.starts_with("HTTP/1.1 503") && not_ready.contains("weights"),
        "{not_ready}"
    );
    running.stopper.stop();
    admin.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_ends_although_a_client_never_hangs_up() {
    let running = run().await;
    let mut client = AdapterServiceClient::new(rpc::client::channel(&running.endpoint).unwrap());
    let hanging = tokio::spawn(async move {
        client
            .list_adapters(wire::ListAdaptersRequest::default())
            .await
    });
    wait_until("serving", async || {
        health(&running, "").await == Ok(ServingStatus::Serving)
    })
    .await;
    running.stopper.stop();
    let ended = tokio::time::timeout(Duration::from_secs(25), running.server).await;
    ended
        .expect("the server ends by its deadline")
        .unwrap()
        .unwrap();
    hanging.abort();
}

#[test]
fn an_endpoint_that_is_none_is_refused() {
    for bad in ["", "localhost:1", "ftp://x", "http://"] {
        assert!(rpc::client::channel(bad).is_err(), "{bad}");
    }
}
