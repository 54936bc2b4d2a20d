//! A real OTLP/gRPC receiver that keeps what it is sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::NumberDataPoint;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A span as far as the tests care.
#[derive(Debug, Clone)]
pub struct Span {
    /// `service.name` of its process.
    pub process: String,
    /// `service.instance.id`: which of the processes of that name.
    pub instance: String,
    pub name: String,
    pub trace: String,
    pub id: String,
    pub parent: String,
    /// Attributes whose values are words or whole numbers.
    pub attributes: BTreeMap<String, String>,
}

/// A value of a counter or gauge, or the sum of a histogram.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    pub process: String,
    pub name: String,
    pub unit: String,
    /// Attributes whose values are words.
    pub attributes: BTreeMap<String, String>,
    pub value: f64,
    /// Of a histogram: how many values, and the bounds between which they are counted.
    pub count: u64,
    pub bounds: Vec<f64>,
}

#[derive(Clone)]
pub struct Receiver {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    measured: Arc<Mutex<Vec<Measured>>>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("free port");
        let receiver =
            Self { address: listener.local_addr().expect("address"), spans: Arc::default(), measured: Arc::default() };
        let (traces, metrics) =
            (TraceServiceServer::new(receiver.clone()), MetricsServiceServer::new(receiver.clone()));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(traces)
                .add_service(metrics)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        receiver
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every value that came, the newest last.
    pub fn measured(&self) -> Vec<Measured> {
        self.measured.lock().expect("values").clone()
    }

    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().expect("spans").clone()
    }
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let mut from = words(resource.resource.map(|resource| resource.attributes).unwrap_or_default());
            let process = from.remove("service.name").unwrap_or_default();
            let instance = from.remove("service.instance.id").unwrap_or_default();
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans).map(|span| Span {
                process: process.clone(),
                instance: instance.clone(),
                name: span.name,
                trace: hex::encode(span.trace_id),
                id: hex::encode(span.span_id),
                parent: hex::encode(span.parent_span_id),
                attributes: words(span.attributes),
            });
            self.spans.lock().expect("spans").extend(spans);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Receiver {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        for resource in request.into_inner().resource_metrics {
            let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            let process = words(attributes).remove("service.name").unwrap_or_default();
            for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                let measured = |value: f64, attributes: Vec<KeyValue>| Measured {
                    process: process.clone(),
                    name: metric.name.clone(),
                    unit: metric.unit.clone(),
                    attributes: words(attributes),
                    value,
                    count: 0,
                    bounds: Vec::new(),
                };
                let plain = |point: NumberDataPoint| measured(number(&point), point.attributes);
                let all: Vec<Measured> = match metric.data {
                    Some(Data::Gauge(gauge)) => gauge.data_points.into_iter().map(plain).collect(),
                    Some(Data::Sum(sum)) => sum.data_points.into_iter().map(plain).collect(),
                    Some(Data::Histogram(histogram)) => {
                        let points = histogram.data_points.into_iter().map(|point| Measured {
                            count: point.count,
                            bounds: point.explicit_bounds,
                            ..measured(point.sum.unwrap_or(f64::NAN), point.attributes)
                        });
                        points.collect()
                    }
                    _ => Vec::new(),
                };
                self.measured.lock().expect("values").extend(all);
            }
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn number(point: &NumberDataPoint) -> f64 {
    match point.value {
        Some(Number::AsDouble(value)) => value,
        Some(Number::AsInt(value)) => value as f64,
        None => f64::NAN,
    }
}

fn words(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let word = |attribute: KeyValue| match attribute.value.and_then(|value| value.value) {
        Some(Value::StringValue(word)) => Some((attribute.key, word)),
        Some(Value::IntValue(number)) => Some((attribute.key, number.to_string())),
        _ => None,
    };
    attributes.into_iter().filter_map(word).collect()
}
