//! A store in which everything has happened that can: where fault tests start from.

use std::sync::Arc;

use tailor_blobs::Store;
use tailor_domain::{AdapterName, AliasName, BaseName, Digest, QuantCode, Version};
use tailor_registry::{Expected, NewBase, NewVersion, Origin, Reason, Registry};
use tailor_serverkit::Settings;
use tailor_testkit::{InMemory, TempDir};

use crate::support::{BASE, Service, job, sound_adapter};

/// The registry's key: what it writes is signed.
pub const KEY: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
pub const GRACE_MS: u64 = 3_600_000;
pub const UNDELETE_MS: u64 = 86_400_000;
/// Longer than a sweeper's claim.
pub const LEASE_MS: u64 = 700_000;
/// Versions of `grammar`: 1 and 2 live, 3 deleted, 4 live, 5 deleted and ready to be purged.
pub const VERSIONS: u64 = 5;
/// Entries of its life.
pub const CHANGES: u64 = 2;

pub struct World {
    pub memory: Arc<InMemory>,
    /// The same, with garbage marked.
    pub marked: InMemory,
    pub now_ms: u64,
    pub base: NewBase,
    /// What may be published next. Its weights lie in the store as garbage: they were uploaded long ago.
    pub by_job: NewVersion,
    pub import: NewVersion,
    /// A blob that nothing names.
    pub garbage: Digest,
    /// The weights of version 5.
    pub purgeable: Digest,
    folder: TempDir,
}

/// A blob that is not in the store.
pub fn fresh() -> (Digest, &'static [u8]) {
    const BYTES: &[u8] = b"fresh bytes";
    (Digest::of(BYTES), BYTES)
}

pub fn reason() -> Reason {
    Reason { who: "ops".into(), why: "set up".into() }
}

impl World {
    pub async fn new() -> Self {
        let memory = Arc::new(InMemory::new());
        let store = Store::over(memory.clone(), "memory://world");
        let service = Service::with(store.clone(), |settings| settings.trust.signing_key = Some(KEY.into())).await;
        service.register_base().await;
        let now_ms = (tailor_serverkit::clock::system())();
        let folder = TempDir::new();
        let mut world = Self {
            marked: InMemory::new(),
            memory: memory.clone(),
            now_ms,
            base: base(&service).await,
            by_job: version(&service, 90).await,
            import: version(&service, 91).await,
            garbage: store.put_blob("garbage").await.expect("put"),
            purgeable: version(&service, 5).await.weights,
            folder,
        };
        let adapter = AdapterName::try_new("grammar").expect("name");
        let registry = world.registry(store.clone(), now_ms);
        for seed in 1..=VERSIONS {
            let origin = Origin { job: job(seed.into()), fence: service.new_attempt(&job(seed.into())).await };
            let new = NewVersion { origin: Some(origin), ..version(&service, seed as u32).await };
            registry.publish(new).await.expect("published");
        }
        let fence = service.new_attempt(&job(90)).await;
        world.by_job.origin = Some(Origin { job: job(90), fence });
        for (alias, to, expected) in
            [("production", 1, Expected::Absent), ("moved", 1, Expected::Absent), ("moved", 2, Expected::Anything)]
        {
            let alias = AliasName::try_new(alias).expect("name");
            registry.set_alias(&adapter, &alias, Version(to), expected, reason()).await.expect("set");
        }
        registry.delete(&adapter, Version(5), &reason()).await.expect("deleted");
        // Deleted later, so that it is not purged with version 5.
        let later = world.registry(store.clone(), now_ms + UNDELETE_MS);
        later.delete(&adapter, Version(3), &reason()).await.expect("deleted");

        let marked = Arc::new(memory.fork());
        let marking = world.registry(Store::over(marked.clone(), "memory://marked"), now_ms + UNDELETE_MS + GRACE_MS);
        marking.collect(false, &reason()).await.expect("marked");
        world.marked = marked.fork();
        world
    }

    /// A registry in a new process, whose clock stands still.
    pub fn registry(&self, store: Store, now_ms: u64) -> Registry {
        let mut settings = Settings { cache_dir: self.folder.join("cache"), ..Settings::default() };
        settings.registry.collect_grace_ms = GRACE_MS;
        settings.registry.undelete_ms = UNDELETE_MS;
        settings.trust.signing_key = Some(KEY.into());
        Registry::new(&settings, store, Arc::new(move || now_ms)).expect("a key")
    }
}

async fn base(service: &Service) -> NewBase {
    let request = service.base_request().await;
    let files = request.files.into_iter().map(|file| file.try_into().expect("a file")).collect();
    NewBase {
        name: BaseName::try_new(BASE).expect("name"),
        fingerprint: Digest::try_new(request.fingerprint).expect("digest"),
        quant: QuantCode::Nf4Single,
        dtype: request.dtype,
        files,
        parameters: request.parameters,
        merged_from: None,
    }
}

/// A version whose files are uploaded.
async fn version(service: &Service, seed: u32) -> NewVersion {
    let request = service.request_for("grammar", &sound_adapter(seed)).await;
    NewVersion {
        adapter: AdapterName::try_new("grammar").expect("name"),
        base: BaseName::try_new(BASE).expect("name"),
        config: Digest::try_new(request.config_digest).expect("digest"),
        weights: Digest::try_new(request.weights_digest).expect("digest"),
        prompt_template: request.prompt_template,
        dataset: None,
        dataset_digest: None,
        origin: None,
        metrics: Default::default(),
        notes: String::new(),
        code_commit: String::new(),
        license: String::new(),
        tags: Default::default(),
        who: "ops".into(),
    }
}
