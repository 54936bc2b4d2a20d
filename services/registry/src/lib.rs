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
//!      ──▶ low_rank  what a version's ranks hold, fewer of them, two versions side by side
//!      ──▶ merge     a version in its base's weights, as a base
//!      ──▶ life      delete, undelete, purge                  ──▶ collect (retention, garbage), usage (quotas)
//!      ──▶ audit     who did what, chained                    ──▶ verify (every stored byte)
//!      ──▶ policy    what an alias demands, who approved      ──▶ gates (judged at each promotion)
//!      ──▶ rollouts  a version that a share of the callers meets
//!      ──▶ watch     every move of alias and rollout, to whoever keeps a table ──▶ changes (one order over them)
//! ```

mod aliases;
mod audit;
mod bases;
mod blobs;
mod catalog;
mod changes;
mod collect;
mod error;
mod gates;
mod grpc;
mod house;
mod hub;
mod layers;
mod life;
mod low_rank;
mod merge;
mod policy;
mod publish;
mod remembered;
mod retention;
mod rollouts;
mod segments;
mod usage;
mod verify;
mod versions;
mod watch;
mod wire_house;
mod words;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tailor_blobs::Store;
use tailor_domain::{AdapterManifest, AliasMove};
use tailor_pb::registry::adapter_registry_server::AdapterRegistryServer;
use tailor_pb::registry::rollout_registry_server::RolloutRegistryServer;
use tailor_serverkit::spool::Limit;
use tailor_serverkit::trust::Keys;
use tailor_serverkit::{Clock, Serving, Settings, clock, limited, serve};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use aliases::{Expected, Reason};
pub use audit::{CaughtUp, Deed, Link, StoredLink};
pub use bases::NewBase;
pub use blobs::Announced;
pub use collect::{Collected, Waiting};
pub use error::{Error, Result};
pub use life::{Gone, Life};
pub use publish::{NewVersion, Origin};
pub use retention::{Retention, Rules};
pub use usage::{AdapterUsage, Usage};
pub use verify::Verified;
pub use versions::AliasedVersion;

use remembered::Remembered;

/// The registry's logic. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    store: Store,
    clock: Clock,
    /// Where uploads wait until they are whole.
    spool_dir: PathBuf,
    blob_limit: Limit,
    layers: layers::Cache,
    house: house::House,
    manifests: Remembered<AdapterManifest>,
    segments: Remembered<Vec<AdapterManifest>>,
    moves: Remembered<AliasMove>,
    lives: life::Lives,
    recent: catalog::Recent,
    trust: Keys,
    auditor: audit::Auditor,
    changes: changes::Changes,
    /// Whoever decomposes adapters has it.
    figures: Arc<Mutex<()>>,
    /// Whoever merges has it.
    merging: Arc<Mutex<()>>,
}

/// Bounds of what is remembered: a manifest takes about 2 kB, a segment 500 times as much.
const MAX_MANIFESTS: usize = 20_000;
const MAX_SEGMENTS: usize = 32;
const MAX_MOVES: usize = 20_000;

impl Registry {
    /// # Errors
    /// [`Error::Settings`]: a key that is none.
    pub fn new(settings: &Settings, store: Store, clock: Clock) -> Result<Self> {
        let blob_limit = Limit { bytes: settings.registry.max_blob_bytes, setting: "registry.max_blob_bytes" };
        let spool_dir = settings.cache_dir.join("spool");
        merge::clear(&spool_dir);
        let changes = changes::Changes::new(store.clone());
        Ok(Self {
            store,
            clock,
            spool_dir,
            blob_limit,
            layers: layers::Cache::default(),
            house: house::House::of(settings),
            manifests: Remembered::new(MAX_MANIFESTS),
            segments: Remembered::new(MAX_SEGMENTS),
            moves: Remembered::new(MAX_MOVES),
            lives: life::Lives::default(),
            recent: catalog::Recent::default(),
            trust: Keys::of(settings)?,
            auditor: audit::Auditor::default(),
            changes,
            figures: Arc::default(),
            merging: Arc::default(),
        })
    }
}

/// Serves the registry over `store` until `stop`.
///
/// # Errors
/// [`Error::Listener`], [`Error::Settings`].
pub async fn start(
    settings: &Settings,
    store: Store,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<Serving> {
    start_at(settings, store, listener, stop, clock::system()).await
}

/// As [`start`], by another clock.
///
/// # Errors
/// [`Error::Listener`].
pub async fn start_at(
    settings: &Settings,
    store: Store,
    listener: TcpListener,
    stop: CancellationToken,
    clock: Clock,
) -> Result<Serving> {
    let registry = Registry::new(settings, store, clock)?;
    let changes = registry.changes.clone();
    let housekeeper = house::keep(registry.clone(), stop.clone());
    let rollouts = limited!(RolloutRegistryServer::new(grpc::RolloutApi::new(registry.clone())));
    let server = limited!(AdapterRegistryServer::new(grpc::Api::new(registry.clone(), stop.clone())));
    let routes = Routes::new(server).add_service(rollouts);
    let routes = Routes::from(routes.into_axum_router().merge(hub::router(registry)));
    let serving = serve("registry", listener, routes, settings, stop.clone()).await.map_err(Error::Listener)?;
    let every = Duration::from_millis(settings.registry.watch_poll_ms);
    let serving = serving.beside("housekeeper", housekeeper);
    Ok(serving.beside("watch", async move { changes.follow(every, stop).await }))
}
