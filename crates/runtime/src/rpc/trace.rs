//! A span and a duration for each call at the server, with the whole response stream, by
//! OpenTelemetry's stable names for rpc. The parent comes from the request's metadata.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Histogram;
use tonic::Code;
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use crate::error::code_name;
use crate::telemetry::{self, semconv};

/// Adds the span and the duration.
#[derive(Clone, Debug)]
pub struct TraceLayer {
    duration: Histogram<f64>,
}

impl Default for TraceLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl TraceLayer {
    /// Returns the layer.
    #[must_use]
    pub fn new() -> Self {
        let meter = telemetry::meter();
        let duration = meter
            .f64_histogram(semconv::RPC_SERVER_CALL_DURATION)
            .with_unit("s");
        let boundaries = vec![
            0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 60.0,
        ];
        Self {
            duration: duration.with_boundaries(boundaries).build(),
        }
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace {
            inner,
            duration: self.duration.clone(),
        }
    }
}

/// The service with the layer around it.
#[derive(Clone, Debug)]
pub struct Trace<S> {
    inner: S,
    duration: Histogram<f64>,
}

impl<S, I, O> Service<Request<I>> for Trace<S>
where
    S: Service<Request<I>, Response = Response<O>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    O: Send + 'static,
{
    type Response = Response<TracedBody<O>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        let method = request.uri().path().trim_start_matches('/').to_owned();
        let span = span(&method, request.headers());
        let call = Call {
            span: span.clone(),
            method,
            begun: Instant::now(),
            duration: self.duration.clone(),
            code: None,
        };
        let answer = span.in_scope(|| self.inner.call(request));
        Box::pin(
            async move {
                let mut call = call;
                let response = answer.await?;
                call.see(response.headers());
                Ok(response.map(|inner| TracedBody { inner, call }))
            }
            .instrument(span),
        )
    }
}

fn span(method: &str, headers: &HeaderMap) -> Span {
    // Health checks are frequent. At this level they are in no trace.
    if method.starts_with("grpc.health.") || method.starts_with("grpc.reflection.") {
        return tracing::debug_span!("rpc", rpc.method = method, rpc.status_code = Empty);
    }
    let span = tracing::info_span!(
        "rpc",
        otel.kind = "server",
        otel.name = method,
        otel.status_code = Empty,
        rpc.system.name = "grpc",
        rpc.method = method,
        rpc.status_code = Empty,
    );
    let parent = headers
        .get(telemetry::TRACEPARENT)
        .and_then(|value| value.to_str().ok());
    match parent {
        Some(parent) => telemetry::span_with_parent(span, parent),
        None => span,
    }
}

/// A running call. Its end is recorded on drop, so that no end is missed.
#[derive(Debug)]
struct Call {
    span: Span,
    method: String,
    begun: Instant,
    duration: Histogram<f64>,
    code: Option<Code>,
}

impl Call {
    /// The status is in the trailers, or in the headers of an answer without a body.
    fn see(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Without a status, the client has disconnected.
        let code = self.code.unwrap_or(Code::Cancelled);
        self.span.record("rpc.status_code", code_name(code));
        // By the conventions, only these codes are faults of the server.
        let fault = matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        );
        if fault {
            self.span.record("otel.status_code", "ERROR");
        }
        // Unknown methods share one label, because clients choose their names and each would create
        // a time series.
        let method = std::mem::take(&mut self.method);
        let method = if code == Code::Unimplemented {
            "_OTHER".to_owned()
        } else {
            method
        };
        let attributes = [
            KeyValue::new(semconv::RPC_SYSTEM_NAME, "grpc"),
            KeyValue::new(semconv::RPC_METHOD, method),
            KeyValue::new(semconv::RPC_STATUS_CODE, code_name(code)),
        ];
        self.duration
            .record(self.begun.elapsed().as_secs_f64(), &attributes);
    }
}

/// A response's body inside its call's span.
#[derive(Debug)]
pub struct TracedBody<B> {
    inner: B,
    call: Call,
}

impl<B: HttpBody + Unpin> HttpBody for TracedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let Self { inner, call } = &mut *self;
        let polled = call.span.in_scope(|| Pin::new(inner).poll_frame(cx));
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            call.see(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
