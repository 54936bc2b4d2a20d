//! From names to something that answers: what a reference means is [`Routes`]' to say; what it leads to is kept by digest,
//! so a moved alias can never meet stale state.

use std::collections::HashMap;
use std::sync::Arc;

use tailor_blobs::Store;
use tailor_domain::{BaseManifest, BaseName, Digest, Version};
use tailor_pb::registry;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_peft::{Adapter, Limits};
use tailor_serverkit::Settings;
use tailor_serverkit::client::Client;
use tailor_serverkit::trust::{Keys, check_version};
use tailor_trust::Trusted;
use tokio::sync::{Mutex, OnceCell};

use crate::bases::{Base, Bases};
use crate::error::{Error, Result};
use crate::routes::Routes;

/// One resolved adapter version.
#[derive(Debug, Clone)]
pub struct AdapterVersion {
    pub name: String,
    pub version: Version,
    pub digest: Digest,
    pub prompt_template: String,
    pub size_bytes: u64,
}

/// A base, perhaps with an adapter that is resident on it.
pub struct Model {
    pub base: Arc<Base>,
    pub adapter: Option<AdapterVersion>,
}

type Load = Arc<OnceCell<()>>;

pub struct Models {
    routes: Arc<Routes>,
    store: Store,
    pub bases: Bases,
    /// Only what one of these keys has signed is loaded; none: anything.
    trusted: Trusted,
    /// Loads by digest: one at a time for each, none in the way of another.
    loads: Mutex<HashMap<Digest, Load>>,
    /// What the resident digests are called, for lists.
    names: Mutex<HashMap<Digest, (AdapterVersion, BaseName)>>,
}

impl Models {
    pub fn new(settings: &Settings, store: Store, routes: Arc<Routes>) -> Result<Self> {
        let trusted = Keys::of(settings)?.trusted;
        let bases = Bases::new(settings, store.clone());
        Ok(Self { routes, bases, trusted, store, loads: Mutex::default(), names: Mutex::default() })
    }

    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    pub fn registry(&self) -> AdapterRegistryClient<Client> {
        self.routes.registry()
    }

    /// Finds base and adapter and makes both ready. Either name may be empty, not both. Takes no part in rollouts: an alias
    /// is what it points to.
    pub async fn find(&self, base: &str, adapter: &str) -> Result<Model> {
        if adapter.is_empty() {
            if base.is_empty() {
                return Err(Error::NoModel);
            }
            return Ok(Model { base: self.base(&BaseName::try_new(base)?).await?, adapter: None });
        }
        let found = self.resolve(adapter).await?;
        self.ready(base, &found).await
    }

    /// Makes a version and its base ready. `base` is what the caller named, if anything.
    pub async fn ready(&self, base: &str, found: &registry::AdapterVersion) -> Result<Model> {
        let adapter = found.adapter.as_str();
        let its_base: BaseName = found.base.parse()?;
        if !base.is_empty() && base != its_base.as_str() {
            let asked = BaseName::try_new(base)?;
            return Err(Error::OtherBase { adapter: adapter.to_owned(), its_base, asked });
        }
        let base = self.base(&its_base).await?;
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
            size_bytes: found.weights_size_bytes,
        };
        self.make_resident(&base, &version, found).await?;
        Ok(Model { base, adapter: Some(version) })
    }

    pub async fn resolve(&self, reference: &str) -> Result<registry::AdapterVersion> {
        let found = self.routes.find(reference).await?;
        let gone = || Error::service("registry")(tonic::Status::not_found("the alias' version was deleted"));
        found.route.target.clone().ok_or_else(gone)
    }

    async fn base(&self, name: &BaseName) -> Result<Arc<Base>> {
        let request = registry::GetBaseRequest { name: name.to_string() };
        let answer = self.registry().get_base(request).await.map_err(Error::service("registry"))?.into_inner();
        self.bases.get(&BaseManifest::try_from(answer)?).await
    }

    /// Loads an adapter unless it is resident. Callers of the same digest share one load; a failed one is forgotten, so
    /// that the next caller tries again.
    async fn make_resident(
        &self,
        base: &Base,
        version: &AdapterVersion,
        found: &registry::AdapterVersion,
    ) -> Result<()> {
        let load = self.loads.lock().await.entry(version.digest.clone()).or_default().clone();
        load.get_or_try_init(|| self.load(base, version, found)).await?;
        Ok(())
    }

    #[tracing::instrument(name = "gateway.load_adapter", skip_all, fields(adapter = %version.name, digest = %version.digest))]
    async fn load(&self, base: &Base, version: &AdapterVersion, found: &registry::AdapterVersion) -> Result<()> {
        let config = self.store.get_blob(&Digest::try_new(found.config_digest.clone())?).await?;
        let weights = self.store.get_blob(&Digest::try_new(found.weights_digest.clone())?).await?;
        let name = format!("{}@{}", version.name, version.version);
        let bad = |problem: String| Error::BadAdapter { adapter: name.clone(), problem };
        check_version(found, &self.trusted).map_err(|error| bad(error.to_string()))?;
        let adapter =
            Adapter::from_bytes(&config, &weights, &Limits::default()).map_err(|error| bad(error.to_string()))?;
        base.engine.load(version.digest.clone(), adapter).await.map_err(|error| bad(error.to_string()))?;
        let entry = (version.clone(), base.manifest.name.clone());
        self.names.lock().await.insert(version.digest.clone(), entry);
        tracing::info!(adapter = name, digest = %version.digest, "adapter is resident");
        Ok(())
    }

    pub async fn unload(&self, digest: &Digest) -> Result<()> {
        let Some((_, base)) = self.names.lock().await.remove(digest) else {
            return Err(Error::NotResident(digest.to_string()));
        };
        self.loads.lock().await.remove(digest);
        for running in self.bases.running().await {
            if running.manifest.name == base {
                running.engine.unload(digest).await?;
            }
        }
        Ok(())
    }

    /// Resident adapters with the base each is on.
    pub async fn resident(&self) -> Vec<(AdapterVersion, BaseName)> {
        let mut resident: Vec<_> = self.names.lock().await.values().cloned().collect();
        resident.sort_by(|a, b| (&a.0.name, a.0.version).cmp(&(&b.0.name, b.0.version)));
        resident
    }
}
