//! InferenceService: edge (names, templates, admission) and engine (adapters on one 4-bit base) in one process.
//!
//! ```text
//! grpc, http ──▶ rollout ─▶ routes   (what does this name mean? a table that the registry's watch keeps)
//!                   └─────▶ models
//!                             ├──▶ bases    (one engine a base, started at its first use)
//!                             └──▶ adapters (fetched by digest, checked, made resident once)
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
mod readiness;
mod reading;
mod resident;
mod rollout;
mod rollout_admin;
mod routes;
mod stop;
mod tenants;

use std::sync::Arc;

use tailor_blobs::Store;
use tailor_domain::Invalid;
use tailor_pb::inference::adapter_admin_server::AdapterAdminServer;
use tailor_pb::inference::inference_service_server::InferenceServiceServer;
use tailor_pb::inference::rollout_admin_server::RolloutAdminServer;
use tailor_serverkit::{Doors, Serving, Settings, cors, limited, serve_with};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_web::GrpcWebLayer;

pub use error::{Error, Result};

use crate::models::Models;
use crate::readiness::Readiness;
use crate::rollout::Rollouts;
use crate::routes::Routes as RoutingTable;

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
    let table = Arc::new(RoutingTable::new(settings)?);
    let models = Arc::new(Models::new(settings, store, table.clone())?);
    let rollouts = Arc::new(Rollouts::new(models.clone()));
    let routes = Routes::default()
        .add_service(limited!(InferenceServiceServer::new(grpc::Api::new(rollouts.clone()))))
        .add_service(limited!(RolloutAdminServer::new(rollout_admin::Api::new(rollouts.clone()))))
        .add_service(limited!(AdapterAdminServer::new(admin::Api::new(models.clone(), rollouts.clone()))));
    // Browsers speak gRPC-Web; what is no gRPC at all is OpenAI's API on the same port.
    let grpc = routes.into_axum_router().reset_fallback().layer(GrpcWebLayer::new());
    let readiness = Arc::new(Readiness::new(models.clone(), settings)?);
    let routes = Routes::from(grpc.merge(http::routes(rollouts.clone(), readiness.hindrances(), settings)?));
    let origins = cors::origins(&settings.gateway.cors_origins);
    let origins = origins.map_err(|problem| Invalid::new("gateway.cors_origins", problem))?;
    let doors = Doors { cors: cors::layer(origins), hindrances: Some(readiness.hindrances()) };
    let serving = serve_with("tailor-gateway", listener, routes, settings, doors, stop.clone()).await;
    let serving = serving.map_err(Error::Listen)?;
    Ok(serving
        .beside("routes", table.follow(stop.clone()))
        .beside("rollouts", rollouts.attend(stop.clone()))
        .beside("readiness", readiness.attend(stop.clone()))
        .beside("reading", reading::attend(models, stop)))
}
