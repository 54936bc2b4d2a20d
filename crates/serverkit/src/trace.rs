//! W3C trace context over gRPC: read at a service's door, written on each call that leaves it.

use std::task::{Context, Poll};

use http::{HeaderMap, Request};
use opentelemetry::propagation::{Extractor, Injector};
use tower::{Layer, Service};
use tracing::Instrument as _;
use tracing::instrument::Instrumented;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }
    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct Parent<'a>(&'a str);

impl Extractor for Parent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0)
    }
    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

#[derive(Default)]
struct Collected(Option<String>);

impl Injector for Collected {
    fn set(&mut self, key: &str, value: String) {
        if key == "traceparent" {
            self.0 = Some(value);
        }
    }
}

/// The current span as a W3C `traceparent`; none while no trace is recorded.
pub fn current_traceparent() -> Option<String> {
    let context = tracing::Span::current().context();
    let mut collected = Collected::default();
    opentelemetry::global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut collected));
    collected.0
}

/// Makes `span` a child of the given `traceparent`, so that a job's trace goes on in another process.
pub fn set_parent(span: &tracing::Span, traceparent: &str) {
    let context = opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&Parent(traceparent)));
    // Fails only where no OpenTelemetry layer is installed; then there is no trace to continue.
    let _ = span.set_parent(context);
}

/// One span a call, child of the caller's.
#[derive(Clone)]
pub struct TraceLayer {
    pub service: &'static str,
}

impl<S> Layer<S> for TraceLayer {
    type Service = TraceService<S>;
    fn layer(&self, inner: S) -> TraceService<S> {
        TraceService { inner, service: self.service }
    }
}

#[derive(Clone)]
pub struct TraceService<S> {
    inner: S,
    service: &'static str,
}

impl<S, B> Service<Request<B>> for TraceService<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Instrumented<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path().trim_start_matches('/').to_owned();
        if path.starts_with("grpc.health.v1.") || path == "readyz" {
            // Probes come every few seconds and tell nothing.
            return self.inner.call(request).instrument(tracing::Span::none());
        }
        let span = tracing::info_span!(
            "grpc",
            otel.name = %path,
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.method = %path,
            tailor.service = self.service
        );
        let parent = opentelemetry::global::get_text_map_propagator(|propagator| {
            propagator.extract(&Headers(request.headers()))
        });
        let _ = span.set_parent(parent);
        self.inner.call(request).instrument(span)
    }
}
