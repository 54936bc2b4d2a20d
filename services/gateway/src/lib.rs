//! InferenceService: edge (names, templates, admission) and engine (adapters on one 4-bit base) in one process.
//!
//! ```text
//! grpc, http ──▶ models ──▶ registry (what does this name mean?)
//!                   ├─────▶ bases    (one engine a base, started at its first use)
//!                   └─────▶ adapters (fetched by digest, checked, made resident once)
//!      ──▶ answer ──▶ engine   (tokens)
//! ```
//!
//! The digest is the key of everything that is kept, so a moved alias can never meet stale state.

mod admin;
mod answer;
mod ask;
mod bases;
mod caller;
mod error;
mod grpc;
mod http;
mod models;
mod resident;
mod stop;
mod tenants;

use std::sync::Arc;

use tailor_blobs::Store;
use tailor_pb::inference::adapter_admin_server::AdapterAdminServer;
use tailor_pb::inference::inference_service_server::InferenceServiceServer;
use tailor_serverkit::{Serving, Settings, limited, serve};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_web::GrpcWebLayer;

pub use error::{Error, Result};

use crate::models::Models;

/// Serves until `stop`. Bases are loaded at their first use.
///
/// # Errors
/// The registry's address cannot be one; a listener without an address.
pub async fn start(
    settings: &Settings,
    store: Store,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<Serving> {
    let models = Arc::new(Models::new(settings, store)?);
    let routes = Routes::default()
        .add_service(limited!(InferenceServiceServer::new(grpc::Api::new(models.clone()))))
        .add_service(limited!(AdapterAdminServer::new(admin::Api::new(models.clone()))));
    // Browsers speak gRPC-Web; what is no gRPC at all is OpenAI's API on the same port.
    let grpc = routes.into_axum_router().reset_fallback().layer(GrpcWebLayer::new());
    let routes = Routes::from(grpc.merge(http::routes(models, settings)?));
    serve("tailor-gateway", listener, routes, settings, stop).await.map_err(Error::Listen)
}
