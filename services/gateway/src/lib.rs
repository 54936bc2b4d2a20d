//! InferenceService: edge (names, templates, admission) and engine (adapters on one 4-bit base) in one process.
//!
//! ```text
//! grpc, http ──▶ rollout ─▶ routes   (what does this name mean? a table that the registry's watch keeps)
//!                   └─────▶ models
//!                             ├──▶ bases    (one engine a base, started at its first use, put away where another needs room)
//!                             └──▶ resident (made resident once) ◀── shelf (fetched by digest, kept on disk and in memory)
//!      ──▶ answer ──▶ device
//!                       ├──▶ engine   (tokens, made here)
//!                       └──▶ fleet ──▶ engine_api of another process
//! ```
//!
//! The digest is the key of everything that is kept, so a moved alias can never meet stale state. An edge (`gateway.role`) has
//! no engine and no weights: of a base it has the tokenizer.

mod admin;
mod ahead;
mod answer;
mod ask;
mod bases;
mod caller;
mod catalog;
mod device;
mod engine_api;
mod error;
mod failures;
mod fleet;
mod gates;
mod grpc;
mod http;
mod models;
mod readiness;
mod reading;
mod resident;
mod rollout;
mod rollout_admin;
mod routes;
mod said;
mod shelf;
mod stop;
mod tenants;
mod way;

use std::sync::Arc;

use tailor_blobs::Store;
use tailor_domain::Invalid;
use tailor_pb::inference::adapter_admin_server::AdapterAdminServer;
use tailor_pb::inference::engine_service_server::EngineServiceServer;
use tailor_pb::inference::inference_service_server::InferenceServiceServer;
use tailor_pb::inference::rollout_admin_server::RolloutAdminServer;
use tailor_serverkit::settings::GatewayRole;
use tailor_serverkit::{Doors, Serving, Settings, cors, limited, serve_with};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_web::GrpcWebLayer;

pub use error::{Error, Result};

use crate::fleet::Fleet;
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
    let fleet = match settings.gateway.role {
        GatewayRole::Edge => Some(Arc::new(Fleet::new(settings)?)),
        GatewayRole::Both | GatewayRole::Engine => None,
    };
    let models = Arc::new(Models::new(settings, store, table.clone(), fleet.clone())?);
    let rollouts = Arc::new(Rollouts::new(models.clone()));
    let readiness = Arc::new(Readiness::new(models.clone(), settings)?);
    let mut routes = Routes::new(limited!(AdapterAdminServer::new(admin::Api::new(models.clone(), rollouts.clone()))));
    if settings.gateway.role != GatewayRole::Engine {
        routes = routes
            .add_service(limited!(InferenceServiceServer::new(grpc::Api::new(rollouts.clone()))))
            .add_service(limited!(RolloutAdminServer::new(rollout_admin::Api::new(rollouts.clone()))));
    }
    if settings.gateway.role != GatewayRole::Edge {
        let api = engine_api::Api::new(models.clone(), readiness.hindrances(), stop.clone());
        routes = routes.add_service(limited!(EngineServiceServer::new(api)));
    }
    // Browsers speak gRPC-Web; what is no gRPC at all is OpenAI's API on the same port.
    let grpc = routes.into_axum_router().reset_fallback().layer(GrpcWebLayer::new());
    let routes = Routes::from(grpc.merge(http::routes(rollouts.clone(), readiness.hindrances(), settings)?));
    let origins = cors::origins(&settings.gateway.cors_origins);
    let origins = origins.map_err(|problem| Invalid::new("gateway.cors_origins", problem))?;
    let doors = Doors { cors: cors::layer(origins), hindrances: Some(readiness.hindrances()) };
    let serving = serve_with("tailor-gateway", listener, routes, settings, doors, stop.clone()).await;
    let serving = serving.map_err(Error::Listen)?;
    let serving = match fleet {
        Some(fleet) => serving.beside("fleet", fleet.follow(stop.clone())),
        None => {
            let cache_dir = settings.cache_dir.clone();
            serving.beside("ahead", ahead::attend(models.clone(), readiness.clone(), cache_dir, stop.clone()))
        }
    };
    Ok(serving
        .beside("routes", table.follow(stop.clone()))
        .beside("rollouts", rollouts.attend(stop.clone()))
        .beside("readiness", readiness.attend(stop.clone()))
        .beside("reading", reading::attend(models, stop)))
}
