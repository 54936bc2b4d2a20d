//! From names to something that answers: what a reference means is [`Routes`]' to say; what it leads to is kept by digest,
//! so a moved alias can never meet stale state.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tailor_blobs::Store;
use tailor_domain::{AdapterRef, BaseManifest, BaseName, Digest, Version};
use tailor_engine::Engine;
use tailor_pb::inference as pb;
use tailor_pb::registry;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_peft::{Adapter, Limits};
use tailor_serverkit::client::Client;
use tailor_serverkit::meter::{Answers, Asked, Engines};
use tailor_serverkit::trust::{Keys, check_version};
use tailor_serverkit::{Settings, status};
use tailor_trust::Trusted;
use tokio::sync::{Mutex, Semaphore};
use tracing::Instrument as _;

use crate::bases::{Base, Bases, InUse, Surroundings, Wanted};
use crate::error::{Error, Result};
use crate::fleet::Fleet;
use crate::reading::DEVICE;
use crate::resident::{Entry, Lease, Resident};
use crate::routes::Routes;
use crate::shelf::Shelf;
use crate::tenants::{TenantLimits, Tenants};
use crate::way::Way;

/// One resolved adapter version.
#[derive(Debug, Clone)]
pub struct AdapterVersion {
    pub name: String,
    pub version: Version,
    pub digest: Digest,
    pub prompt_template: String,
}

/// A base that is ready, perhaps with an adapter version on it. The version is made resident by [`Model::lease`], once it is
/// known that its caller may use it.
#[derive(Clone)]
pub struct Model {
    pub base: InUse,
    pub adapter: Option<AdapterVersion>,
    /// What the registry says of the adapter's version.
    found: Option<Arc<registry::AdapterVersion>>,
    home: Arc<Models>,
}

/// What is measured here.
pub struct Meters {
    pub answers: Answers,
    pub engines: Engines,
}

impl Model {
    /// Makes the adapter resident, if there is one and its engine is here; what is leased stays so.
    ///
    /// # Errors
    /// It cannot be fetched, or fails its checks.
    pub async fn lease(&self) -> Result<Option<Lease>> {
        let (Some(version), Some(found)) = (self.adapter.clone(), self.found.clone()) else { return Ok(None) };
        // An edge leaves that to the engine that it will choose.
        let Some(engine) = self.base.device.engine().cloned() else { return Ok(None) };
        let (home, base) = (self.home.clone(), self.base.clone());
        // A caller that goes away in the meantime must not leave it half in: it would lie on the device, and nobody would know.
        let loading = async move { home.make_resident(&base, &engine, &version, &found).await };
        let loaded = tokio::spawn(loading.in_current_span()).await;
        loaded.unwrap_or(Err(Error::Cut)).map(Some)
    }

    pub fn tenants(&self) -> &Arc<Tenants> {
        &self.home.tenants
    }

    pub fn meters(&self) -> &Arc<Meters> {
        &self.home.meters
    }

    /// As engines elsewhere know it.
    pub fn target(&self) -> pb::Target {
        let adapter = self.adapter.as_ref();
        pb::Target {
            base: self.base.manifest.name.to_string(),
            base_fingerprint: self.base.manifest.fingerprint.to_string(),
            adapter: adapter.map(|version| version.name.clone()).unwrap_or_default(),
            version: adapter.map_or(0, |version| version.version.0),
            digest: adapter.map(|version| version.digest.to_string()).unwrap_or_default(),
        }
    }

    /// As metrics name a request of this model.
    pub fn asked(&self, operation: &'static str) -> Asked {
        let adapter = self.adapter.as_ref();
        Asked {
            operation,
            base: self.base.manifest.name.to_string(),
            adapter: adapter
                .map(|version| (format!("{}@{}", version.name, version.version), version.digest.to_string())),
        }
    }
}

/// The base of a version, which is the one that the caller named, if any.
///
/// # Errors
/// [`Error::OtherBase`].
pub fn of_base(base: &str, found: &registry::AdapterVersion) -> Result<BaseName> {
    let its_base: BaseName = found.base.parse()?;
    if !base.is_empty() && base != its_base.as_str() {
        let asked = BaseName::try_new(base)?;
        return Err(Error::OtherBase { adapter: found.adapter.clone(), its_base, asked });
    }
    Ok(its_base)
}

/// # Errors
/// [`Error::OtherBaseNow`].
fn check_fingerprint(found: &BaseManifest, wanted: &Digest) -> Result<()> {
    if found.fingerprint == *wanted {
        return Ok(());
    }
    let (base, found) = (found.name.clone(), found.fingerprint.clone());
    Err(Error::OtherBaseNow { base, wanted: wanted.clone(), found })
}

/// Digests that are remembered as bad.
const MAX_QUARANTINED: usize = 10_000;
/// Adapters' files that are read at the same time; a thousand that come at once leave the cores to the steps.
const READ_AT_ONCE: usize = 4;

pub struct Models {
    routes: Arc<Routes>,
    pub bases: Bases,
    fleet: Option<Arc<Fleet>>,
    tenants: Arc<Tenants>,
    pub meters: Arc<Meters>,
    /// Only what one of these keys has signed is loaded; none: anything.
    trusted: Trusted,
    resident: Arc<Resident>,
    shelf: Shelf,
    way: Way,
    reading: Semaphore,
    /// What failed its checks, with the reason. A digest says what it is, so it would fail them again.
    quarantine: Mutex<HashMap<Digest, String>>,
}

impl Models {
    pub fn new(settings: &Settings, store: Store, routes: Arc<Routes>, fleet: Option<Arc<Fleet>>) -> Result<Self> {
        let limits = TenantLimits {
            requests_per_minute: settings.gateway.tenant_requests_per_minute,
            tokens_per_minute: settings.gateway.tenant_tokens_per_minute,
        };
        let meters =
            Arc::new(Meters { answers: Answers::new(settings.gateway.metered_adapters), engines: Engines::default() });
        let resident = Arc::new(Resident::new(settings.gateway.adapter_bytes));
        let around = Surroundings { adapters: resident.clone(), routes: routes.clone(), meters: meters.clone() };
        Ok(Self {
            tenants: Arc::new(Tenants::new(limits)),
            meters,
            bases: Bases::new(settings, store.clone(), fleet.clone(), around)?,
            fleet,
            routes,
            trusted: Keys::of(settings)?.trusted,
            resident,
            shelf: Shelf::new(settings, store),
            way: Way::default(),
            reading: Semaphore::new(READ_AT_ONCE),
            quarantine: Mutex::default(),
        })
    }

    /// The engines that this edge sends its requests to; None where it is its own.
    pub fn fleet(&self) -> Option<&Arc<Fleet>> {
        self.fleet.as_ref()
    }

    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    pub fn registry(&self) -> AdapterRegistryClient<Client> {
        self.routes.registry()
    }

    /// Finds base and adapter and makes the base ready. Either name may be empty, not both. Takes no part in rollouts: an alias
    /// is what it points to.
    pub async fn find(self: &Arc<Self>, base: &str, adapter: &str) -> Result<Model> {
        if adapter.is_empty() {
            if base.is_empty() {
                return Err(Error::NoModel);
            }
            let base = self.base(&BaseName::try_new(base)?, Wanted::Now).await?;
            return Ok(self.model(base, None));
        }
        let found = self.resolve(adapter).await?;
        self.ready(base, &found).await
    }

    /// Makes a version's base ready. `base` is what the caller named, if anything.
    pub async fn ready(self: &Arc<Self>, base: &str, found: &registry::AdapterVersion) -> Result<Model> {
        self.ready_for(base, found, Wanted::Now).await
    }

    /// As [`Self::ready`], for a version that the process before had on the device; `place` as in [`Wanted::Again`].
    ///
    /// # Errors
    /// Another base would have to leave, too.
    pub async fn ready_again(self: &Arc<Self>, found: &registry::AdapterVersion, place: u64) -> Result<Model> {
        self.ready_for("", found, Wanted::Again { place }).await
    }

    async fn ready_for(
        self: &Arc<Self>,
        base: &str,
        found: &registry::AdapterVersion,
        wanted: Wanted,
    ) -> Result<Model> {
        let adapter = found.adapter.as_str();
        let its_base = of_base(base, found)?;
        let base = self.base(&its_base, wanted).await?;
        let fingerprint = base.manifest.fingerprint.to_string();
        if fingerprint != found.base_fingerprint {
            let wanted = found.base_fingerprint.clone();
            return Err(Error::OtherFingerprint {
                adapter: adapter.to_owned(),
                base: its_base,
                wanted,
                found: fingerprint,
            });
        }
        let version = AdapterVersion {
            name: found.adapter.clone(),
            version: Version(found.version),
            digest: Digest::try_new(found.digest.clone())?,
            prompt_template: found.prompt_template.clone(),
        };
        Ok(self.model(base, Some((version, found))))
    }

    fn model(self: &Arc<Self>, base: InUse, adapter: Option<(AdapterVersion, &registry::AdapterVersion)>) -> Model {
        let (adapter, found) = adapter.map(|(version, found)| (version, Arc::new(found.clone()))).unzip();
        Model { base, adapter, found, home: Arc::clone(self) }
    }

    pub async fn resolve(&self, reference: &str) -> Result<registry::AdapterVersion> {
        let found = self.routes.find(reference).await?;
        let gone = || Error::service("registry")(tonic::Status::not_found("the alias' version was deleted"));
        found.route.target.clone().ok_or_else(gone)
    }

    /// A base that is known by its fingerprint, alone.
    ///
    /// # Errors
    /// The base of that name is another.
    pub async fn base_of(self: &Arc<Self>, name: &BaseName, fingerprint: &Digest) -> Result<Model> {
        let base = self.base(name, Wanted::Now).await?;
        check_fingerprint(&base.manifest, fingerprint)?;
        Ok(self.model(base, None))
    }

    /// Opens a base that the process before had open; `place` as in [`Wanted::Again`].
    ///
    /// # Errors
    /// The base of that name is another, or is gone; another base would have to leave for it.
    pub async fn open_again(self: &Arc<Self>, name: &BaseName, fingerprint: &Digest, place: u64) -> Result<()> {
        let manifest = self.routes.base(name).await?;
        check_fingerprint(&manifest, fingerprint)?;
        self.open(manifest, Wanted::Again { place }).await.map(drop)
    }

    /// Whether a base is ready, or would be without another's leaving for it.
    ///
    /// # Errors
    /// The registry's.
    pub async fn has_room_for(&self, base: &BaseName) -> Result<bool> {
        let manifest = self.routes.base(base).await?;
        Ok(self.bases.has_room_for(&manifest).await)
    }

    async fn base(self: &Arc<Self>, name: &BaseName, wanted: Wanted) -> Result<InUse> {
        let manifest = self.routes.base(name).await?;
        self.open(manifest, wanted).await
    }

    async fn open(self: &Arc<Self>, manifest: Arc<BaseManifest>, wanted: Wanted) -> Result<InUse> {
        let home = self.clone();
        // A caller that goes away must not leave a start behind that nobody waits for, and the next one begin another.
        let start = async move { home.bases.get(&manifest, wanted).await };
        tokio::spawn(start.in_current_span()).await.unwrap_or(Err(Error::Cut))
    }

    /// Loads an adapter unless it is resident, and makes room for it. Callers of the same digest share one load; what failed
    /// its checks is not tried again, what failed otherwise is.
    async fn make_resident(
        &self,
        base: &Base,
        engine: &Engine,
        version: &AdapterVersion,
        found: &registry::AdapterVersion,
    ) -> Result<Lease> {
        if let Some(reason) = self.quarantine.lock().await.get(&version.digest) {
            let adapter = format!("{}@{}", version.name, version.version);
            return Err(Error::Quarantined { adapter, digest: version.digest.clone(), reason: reason.clone() });
        }
        let load = async {
            let begun = Instant::now();
            let loaded = self.load(engine, version, found).await;
            let error = loaded.as_ref().err().map(|error| status::reason(error.code()));
            self.meters.engines.loaded(DEVICE, begun.elapsed(), error);
            loaded
        };
        let on = (&base.manifest.name, &base.manifest.fingerprint);
        let leased = self.resident.lease(version, on, load).await;
        if let Err(Error::BadAdapter { problem, .. }) = &leased {
            tracing::warn!(adapter = version.name, digest = %version.digest, problem, "adapter is quarantined");
            self.shelf.drop_files(&version.digest);
            let mut quarantine = self.quarantine.lock().await;
            // Whoever publishes without end cannot fill the memory: what is forgotten fails its checks again.
            if quarantine.len() >= MAX_QUARANTINED {
                quarantine.clear();
            }
            quarantine.insert(version.digest.clone(), problem.clone());
        }
        let lease = leased?;
        // A rollout's two sides and the way back from it stay, whoever is served in between.
        while let Some(leaving) = self.resident.next_to_go(|| self.routes.table().held()).await {
            self.take_off(&leaving.entry).await?;
            self.meters.engines.evicted(DEVICE);
            tracing::info!(adapter = leaving.entry.version.name, digest = %leaving.entry.version.digest, "adapter is evicted");
        }
        Ok(lease)
    }

    #[tracing::instrument(name = "gateway.load_adapter", skip_all, fields(adapter = %version.name, digest = %version.digest))]
    async fn load(&self, engine: &Engine, version: &AdapterVersion, found: &registry::AdapterVersion) -> Result<u64> {
        let _room = self.way.enter(found.weights_size_bytes).await?;
        let files = self.shelf.fetch(found, &self.meters.engines).await?;
        let name = format!("{}@{}", version.name, version.version);
        let bad = |problem: String| Error::BadAdapter { adapter: name.clone(), problem };
        check_version(found, &self.trusted).map_err(|error| bad(error.to_string()))?;
        // Every value is looked at: not on a thread that others' requests go through.
        let read = move || Adapter::from_bytes(&files.config, &files.weights, &Limits::default());
        let turn = self.reading.acquire().await.map_err(|_| Error::Cut)?;
        let adapter = tokio::task::spawn_blocking(read).await.map_err(|_| Error::Cut)?;
        drop(turn);
        let adapter = adapter.map_err(|error| bad(error.to_string()))?;
        let resident = engine.load(version.digest.clone(), adapter).await.map_err(|error| match error {
            tailor_engine::Error::AdapterRefused { problem, .. } => bad(problem),
            // Not the adapter's fault: the next caller tries again.
            other => Error::Engine(other),
        })?;
        tracing::info!(adapter = name, digest = %version.digest, "adapter is resident");
        Ok(resident.size_bytes)
    }

    /// Makes an adapter resident before anybody asks for it.
    ///
    /// # Errors
    /// It cannot be found or loaded; it is taken off each time.
    pub async fn make_ready(self: &Arc<Self>, reference: &AdapterRef) -> Result<Entry> {
        let model = self.find("", &reference.to_string()).await?;
        let version = model.adapter.as_ref().ok_or(Error::NoModel)?;
        self.resident.shown(version, || model.lease()).await
    }

    /// Brings a version's files near, so that its first request waits for little.
    ///
    /// # Errors
    /// The store's.
    pub async fn prefetch(&self, found: &registry::AdapterVersion) -> Result<()> {
        self.shelf.fetch(found, &self.meters.engines).await.map(drop)
    }

    /// Requests that use it end first.
    ///
    /// # Errors
    /// It is not resident.
    pub async fn unload(&self, digest: &Digest) -> Result<()> {
        let leaving = self.resident.remove(digest).await?;
        leaving.unused().await;
        self.take_off(&leaving.entry).await
    }

    async fn take_off(&self, entry: &Entry) -> Result<()> {
        let running = self.bases.running().await;
        let base = running.into_iter().find(|base| base.manifest.fingerprint == entry.fingerprint);
        let Some(engine) = base.as_ref().and_then(|base| base.device.engine()) else { return Ok(()) };
        match engine.unload(&entry.version.digest).await {
            // The base may have been put away, and have come back without it.
            Ok(()) | Err(tailor_engine::Error::UnknownAdapter { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Pinned adapters stay on the device whatever else is asked for.
    ///
    /// # Errors
    /// It is not resident.
    pub fn pin(&self, digest: &Digest, pinned: bool) -> Result<Entry> {
        self.resident.pin(digest, pinned)
    }

    /// Resident adapters with the base each is on.
    pub fn resident(&self) -> Vec<Entry> {
        self.resident.list()
    }

    /// Those on the device, the most worth first.
    pub fn resident_by_worth(&self) -> Vec<Entry> {
        self.resident.by_worth()
    }

    pub fn is_resident(&self, digest: &str) -> bool {
        Digest::try_new(digest).is_ok_and(|digest| self.resident.holds(&digest))
    }

    /// Bytes of adapters that the device is to hold.
    pub fn device_budget(&self) -> u64 {
        self.resident.budget()
    }

    /// Digests of versions whose files are in memory.
    pub fn in_memory(&self) -> Vec<Digest> {
        self.shelf.in_memory()
    }

    /// What the tiers behind the device hold: their names, how many, their bytes.
    pub fn shelves(&self) -> [(&'static str, u64, u64); 2] {
        self.shelf.holds()
    }
}
