//! Calling another service: lazily connected, with the token and the trace on every call.

use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// What generated clients are built over.
pub type Client = InterceptedService<Channel, Outgoing>;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{service} address {url:?} is not valid: {problem}; write http://host:port")]
    Address { service: &'static str, url: String, problem: String },
    #[error("the token holds characters that a header cannot carry")]
    Token,
}

/// Adds the token and the current trace to a call.
#[derive(Clone)]
pub struct Outgoing {
    authorization: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Outgoing {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        if let Some(parent) = crate::trace::current_traceparent().and_then(|parent| parent.parse().ok()) {
            request.metadata_mut().insert("traceparent", parent);
        }
        Ok(request)
    }
}

/// A channel to `url` that connects at its first use and again whenever it must.
///
/// # Errors
/// The address or the token cannot be one. An address where nobody listens is found out at the first call.
pub fn connect(service: &'static str, url: &str, token: Option<&str>) -> Result<Client, Error> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|error| Error::Address { service, url: url.into(), problem: error.to_string() })?
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .keep_alive_while_idle(true)
        .http2_keep_alive_interval(Duration::from_secs(30));
    let authorization = match token {
        None => None,
        Some(token) => Some(format!("Bearer {token}").parse().map_err(|_| Error::Token)?),
    };
    Ok(InterceptedService::new(endpoint.connect_lazy(), Outgoing { authorization }))
}
