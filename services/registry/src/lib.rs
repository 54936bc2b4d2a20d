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
//!      ──▶ policy    what an alias demands, who approved      ──▶ gates (judged at each promotion)
//!      ──▶ rollouts  a version that a share of the callers meets
//!      ──▶ watch     every move of alias and rollout, to whoever keeps a table ──▶ changes (one order over them)
//! ```

mod aliases;
mod bases;
mod blobs;
mod catalog;
mod changes;
mod error;
mod gates;
mod grpc;
mod hub;
mod layers;
mod policy;
mod publish;
mod rollouts;
mod versions;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use tailor_blobs::Store;
use tailor_pb::registry::adapter_registry_server::AdapterRegistryServer;
use tailor_pb::registry::rollout_registry_server::RolloutRegistryServer;
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
    changes: changes::Changes,
}

impl Registry {
    pub fn new(settings: &Settings, store: Store, clock: Clock) -> Self {
        let blob_limit = Limit { bytes: settings.registry.max_blob_bytes, setting: "registry.max_blob_bytes" };
        let spool_dir = settings.cache_dir.join("spool");
        let changes = changes::Changes::new(store.clone());
        Self { store, clock, spool_dir, blob_limit, layers: layers::Cache::default(), changes }
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
    let changes = registry.changes.clone();
    let rollouts = limited!(RolloutRegistryServer::new(grpc::RolloutApi::new(registry.clone())));
    let server = limited!(AdapterRegistryServer::new(grpc::Api::new(registry.clone(), stop.clone())));
    let routes = Routes::new(server).add_service(rollouts);
    let routes = Routes::from(routes.into_axum_router().merge(hub::router(registry)));
    let serving = serve("registry", listener, routes, settings, stop.clone()).await.map_err(Error::Listener)?;
    let every = Duration::from_millis(settings.registry.watch_poll_ms);
    Ok(serving.beside("watch", async move { changes.follow(every, stop).await }))
}
