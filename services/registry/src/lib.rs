//! AdapterRegistry: bases, adapter versions, and the aliases that point to them.
//!
//! Everything is an immutable object in the store, so any number of registries may run beside each other: a version and
//! an alias' move are each one create-if-absent under the next number, and that create is the only moment of decision.
//!
//! ```text
//! grpc ──▶ blobs     bytes in and out, checked against their sha256
//!      ──▶ bases     a quantised folder under a name          ──▶ layers (module paths and shapes)
//!      ──▶ versions  publish: check against the base, number, exactly once per job
//!      ──▶ aliases   compare-and-swap, rollback, history      ──▶ catalog (lists, references)
//! ```

mod aliases;
mod bases;
mod blobs;
mod catalog;
mod error;
mod grpc;
mod hub;
mod layers;
mod publish;
mod versions;

use std::path::PathBuf;

use tailor_blobs::Store;
use tailor_pb::registry::adapter_registry_server::AdapterRegistryServer;
use tailor_serverkit::spool::Limit;
use tailor_serverkit::{Clock, Serving, Settings, clock, limited, serve};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use error::{Error, Result};

/// The registry's logic. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    store: Store,
    clock: Clock,
    /// Where uploads wait until they are whole.
    spool_dir: PathBuf,
    blob_limit: Limit,
    layers: layers::Cache,
}

impl Registry {
    pub fn new(settings: &Settings, store: Store, clock: Clock) -> Self {
        let blob_limit = Limit { bytes: settings.registry.max_blob_bytes, setting: "registry.max_blob_bytes" };
        let spool_dir = settings.cache_dir.join("spool");
        Self { store, clock, spool_dir, blob_limit, layers: layers::Cache::default() }
    }
}

/// Serves the registry over `store` until `stop`.
///
/// # Errors
/// [`Error::Listener`].
pub async fn start(
    settings: &Settings,
    store: Store,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<Serving> {
    let registry = Registry::new(settings, store, clock::system());
    let server = limited!(AdapterRegistryServer::new(grpc::Api::new(registry.clone())));
    let routes = Routes::from(Routes::new(server).into_axum_router().merge(hub::router(registry)));
    serve("registry", listener, routes, settings, stop).await.map_err(Error::Listener)
}
