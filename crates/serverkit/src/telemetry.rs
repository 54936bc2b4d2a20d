//! Structured logs to stderr; traces and metrics over OTLP where an endpoint is set, and only there.

use std::io::IsTerminal as _;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::settings::{LogFormat, Settings};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("settings: log.filter: {0:?} is no tracing filter; write for example info,tailor_trainer=debug")]
    Filter(String),
    #[error("settings: telemetry.otlp_endpoint: {endpoint:?} cannot be used: {problem}")]
    Otlp { endpoint: String, problem: String },
    #[error("telemetry was set up twice in one process")]
    Twice,
}

/// Sends what is still buffered when dropped.
pub struct Guard {
    providers: Option<(SdkTracerProvider, SdkMeterProvider)>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some((traces, metrics)) = &self.providers else { return };
        if let Err(error) = traces.shutdown() {
            eprintln!("telemetry: the last spans were not sent: {error}");
        }
        if let Err(error) = metrics.shutdown() {
            eprintln!("telemetry: the last metrics were not sent: {error}");
        }
    }
}

/// Sets up logs, traces and metrics for the whole process.
///
/// # Errors
/// A filter or an endpoint that cannot be used; the message names the key.
pub fn init(service: &'static str, settings: &Settings) -> Result<Guard, Error> {
    let filter = EnvFilter::try_new(&settings.log.filter).map_err(|_| Error::Filter(settings.log.filter.clone()))?;
    let logs = match settings.log.format {
        LogFormat::Json => tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr).boxed(),
        // Colours only for a person: a file or a container's log keeps the escape codes as they are.
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .boxed(),
    };
    let providers = match &settings.telemetry.otlp_endpoint {
        None => None,
        Some(endpoint) => {
            let resource = resource(service);
            let traces = tracer(resource.clone(), endpoint)?;
            Some((traces, meter(resource, endpoint, settings.telemetry.metrics_ms)?))
        }
    };
    opentelemetry::global::set_text_map_propagator(opentelemetry_sdk::propagation::TraceContextPropagator::new());
    let traces = providers.as_ref().map(|(provider, _)| {
        let ours = tracing_subscriber::filter::filter_fn(|metadata| metadata.target().starts_with("tailor"));
        tracing_opentelemetry::layer().with_tracer(provider.tracer("tailor")).with_filter(ours)
    });
    tracing_subscriber::registry().with(traces).with(logs.with_filter(filter)).try_init().map_err(|_| Error::Twice)?;
    if let Some((_, metrics)) = &providers {
        opentelemetry::global::set_meter_provider(metrics.clone());
    }
    Ok(Guard { providers })
}

fn tracer(resource: Resource, endpoint: &str) -> Result<SdkTracerProvider, Error> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| Error::Otlp { endpoint: endpoint.into(), problem: error.to_string() })?;
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

fn meter(resource: Resource, endpoint: &str, every_ms: u64) -> Result<SdkMeterProvider, Error> {
    let exporter = opentelemetry_otlp::MetricExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| Error::Otlp { endpoint: endpoint.into(), problem: error.to_string() })?;
    let reader = PeriodicReader::builder(exporter).with_interval(Duration::from_millis(every_ms)).build();
    Ok(SdkMeterProvider::builder().with_reader(reader).with_resource(resource).build())
}

/// Several processes bear one service's name: without an id of its own each would go on with the others' counters.
fn resource(service: &'static str) -> Resource {
    let instance = KeyValue::new("service.instance.id", ulid::Ulid::new().to_string());
    Resource::builder().with_service_name(service).with_attribute(instance).build()
}
