//! Logs, traces and metrics, installed once in a process; trace context to and from headers.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

use opentelemetry::metrics::Meter;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use parking_lot::Mutex;
use prometheus::{Registry, TextEncoder};
use tracing::Span;
use tracing::field::Field;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::config::{LogFormat, TelemetryConfig};
use crate::error::{Error, Result};

pub mod semconv;

/// The header of W3C trace context, in NATS and in gRPC.
pub const TRACEPARENT: &str = "traceparent";

static INSTALLED: OnceLock<Installed> = OnceLock::new();
static INSTALLING: Mutex<()> = Mutex::new(());

struct Installed {
    registry: Registry,
    tracers: SdkTracerProvider,
}

/// Telemetry's end. Call [`Guard::flush`] before the process ends.
#[derive(Debug)]
#[must_use = "flush it before the process ends"]
pub struct Guard(());

impl Guard {
    /// Exports the pending spans.
    pub async fn flush(self) {
        // The exporter blocks; on a thread of the runtime it would wait for itself.
        let flushed = tokio::task::spawn_blocking(|| {
            INSTALLED
                .get()
                .map(|installed| installed.tracers.force_flush())
        });
        if let Ok(Some(Err(error))) = flushed.await {
            tracing::debug!(%error, "some spans were not exported");
        }
    }
}

/// Installs logging (to stderr), tracing and metrics for the process. Only the first call has an
/// effect, because services and tests may share a process. Needs a multi-threaded runtime if spans
/// are exported.
///
/// # Errors
/// `InvalidArgument` if the filter or the endpoint is wrong.
pub fn init(config: &TelemetryConfig, service: &str) -> Result<Guard> {
    // A second caller waits, because a meter taken before the provider is installed would never
    // record.
    let _one_at_a_time = INSTALLING.lock();
    if INSTALLED.get().is_some() {
        return Ok(Guard(()));
    }
    let filter = EnvFilter::try_new(&config.log_filter)
        .map_err(|error| Error::invalid("telemetry.log_filter", error.to_string()))?;
    let resource = Resource::builder()
        .with_service_name(service.to_owned())
        .with_attribute(KeyValue::new("service.namespace", "togi"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let tracers = tracers(config, resource.clone())?;
    let registry = Registry::new();
    let reader = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        .build()
        .map_err(|error| Error::internal("metrics cannot be set up").with_source(error))?;
    let meters = SdkMeterProvider::builder()
        .with_reader(reader)
        .with_resource(resource)
        .build();
    let tracer = tracers.tracer("togi");
    if INSTALLED.set(Installed { registry, tracers }).is_err() {
        return Ok(Guard(()));
    }
    global::set_meter_provider(meters);
    // Without an exporter spans are cheap, and trace context is still passed on.
    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_filter(EnvFilter::new("off,togi=info"));
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr()) && !no_color;
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(colour)
        .with_writer(std::io::stderr);
    let lines = match config.log_format {
        LogFormat::Human => lines.fmt_fields(debug_fn(write_field)).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // A test's subscriber stays.
    let _ = tracing_subscriber::registry()
        .with(spans)
        .with(lines.with_filter(filter))
        .try_init();
    Ok(Guard(()))
}

/// The human form: without the fields that only an exporter needs.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    match field.name() {
        "message" => write!(writer, "{value:?}"),
        name if ["otel.", "messaging.", "rpc.", "gen_ai."]
            .iter()
            .any(|own| name.starts_with(own)) =>
        {
            Ok(())
        }
        name => write!(writer, " {name}={value:?}"),
    }
}

fn tracers(config: &TelemetryConfig, resource: Resource) -> Result<SdkTracerProvider> {
    let builder = SdkTracerProvider::builder().with_resource(resource);
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let from_environment =
        set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or(set("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let endpoint = Some(config.otlp_endpoint.clone())
        .filter(|endpoint| !endpoint.is_empty())
        .or(from_environment);
    let Some(endpoint) = endpoint else {
        return Ok(builder.build());
    };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| Error::invalid("telemetry.otlp_endpoint", error.to_string()))?;
    Ok(builder.with_batch_exporter(exporter).build())
}

/// Returns the meter of all metrics of Togi.
#[must_use]
pub fn meter() -> Meter {
    global::meter("togi")
}

/// Returns all metrics in Prometheus' text format; empty before [`init`].
#[must_use]
pub fn metrics_text() -> String {
    let Some(installed) = INSTALLED.get() else {
        return String::new();
    };
    TextEncoder::new()
        .encode_to_string(&installed.registry.gather())
        .unwrap_or_default()
}

/// Returns the current span's W3C trace context; `None` outside a trace.
#[must_use]
pub fn current_traceparent() -> Option<String> {
    traceparent(&Span::current())
}

/// Returns a span's W3C trace context.
#[must_use]
pub fn traceparent(span: &Span) -> Option<String> {
    let context = span.context();
    if !context.span().span_context().is_valid() {
        return None;
    }
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    carrier.remove(TRACEPARENT)
}

/// Sets a span's parent from a trace context; an invalid text changes nothing. Call it before the
/// span is entered.
#[must_use]
pub fn span_with_parent(span: Span, traceparent: &str) -> Span {
    if let Some(context) = context(traceparent) {
        // Tests without telemetry have no layer and no trace.
        let _ = span.set_parent(context);
    }
    span
}

fn context(traceparent: &str) -> Option<Context> {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    context.span().span_context().is_valid().then_some(context)
}

/// Writes the current trace context into a request's metadata.
pub fn inject(metadata: &mut tonic::metadata::MetadataMap) {
    if let Some(value) = current_traceparent().and_then(|text| text.parse().ok()) {
        metadata.insert(TRACEPARENT, value);
    }
}

/// Returns the trace context in a request's metadata.
#[must_use]
pub fn extract(metadata: &tonic::metadata::MetadataMap) -> Option<String> {
    metadata.get(TRACEPARENT)?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_span_joins_the_trace_that_it_is_given() {
        init(&TelemetryConfig::default(), "test")
            .unwrap()
            .flush()
            .await;
        init(&TelemetryConfig::default(), "test again")
            .unwrap()
            .flush()
            .await;
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let span = span_with_parent(tracing::info_span!("work"), parent);
        let carried = span.in_scope(current_traceparent).unwrap();
        assert!(
            carried.starts_with("00-0af7651916cd43dd8448eb211c80319c-"),
            "{carried}"
        );
        assert_ne!(carried, parent);
        let fresh =
            traceparent(&span_with_parent(tracing::info_span!("work"), "nonsense")).unwrap();
        assert!(!fresh.contains("0af7651916cd43dd"), "{fresh}");
    }
}
