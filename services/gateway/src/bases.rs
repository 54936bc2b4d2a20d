//! Bases in service: fetched, mapped and started at their first use, once, however many ask at the same time; put away again,
//! the longest unused first, where another needs their memory.
//!
//! ```text
//! get ──▶ slot (one start for all who ask) ──▶ files on disk ──▶ room (choice: who goes?) ──▶ engine
//!                                                                  │
//!                                                  its adapters forgotten, its threads ended
//! ```
//!
//! Whoever uses a base holds an [`InUse`]; while anybody does, it stays. Making room waits for others that make room, never a
//! request for a base that is there. On an edge a base is its tokenizer and takes no room.

mod base;
mod choice;
mod room;

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tailor_blobs::Store;
use tailor_domain::{BaseManifest, BaseName, Digest};
use tailor_engine::{Engine, EngineOptions, GenerateJob};
use tailor_serverkit::Settings;
use tailor_text::Tokenizer;
use tokio::sync::Mutex;

pub use self::base::{Base, InUse, Wanted};
use self::base::{Slots, Started};
use self::room::Room;
pub use self::room::Surroundings;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::failures::Failures;
use crate::fleet::Fleet;

/// Where uses are counted from; what the process before has used is older than that.
const FIRST_USE: u64 = 1 << 32;
/// What an edge leaves in the store: it needs a base's words, not its weights.
const WEIGHTS: &str = ".safetensors";

pub struct Bases {
    store: Store,
    cache_dir: PathBuf,
    options: EngineOptions,
    /// Where an edge has its engines.
    fleet: Option<Arc<Fleet>>,
    slots: Mutex<Slots>,
    /// Of starts, apart by whether others may leave for it.
    failures: Failures<(Digest, bool)>,
    room: Room,
    /// Counts uses.
    clock: AtomicU64,
}

impl Bases {
    /// # Errors
    /// A name in `gateway.preload` that is none.
    pub fn new(settings: &Settings, store: Store, fleet: Option<Arc<Fleet>>, around: Surroundings) -> Result<Self> {
        let options = EngineOptions {
            max_queue: settings.gateway.max_queue,
            max_queue_tokens: settings.gateway.max_queue_tokens,
            max_batch: settings.gateway.max_batch,
            kv_bytes: settings.gateway.kv_bytes,
            ..EngineOptions::default()
        };
        let cache_dir = settings.cache_dir.join(if fleet.is_some() { "edge" } else { "bases" });
        let (slots, clock) = (Mutex::default(), AtomicU64::new(FIRST_USE));
        let (room, failures) = (Room::new(settings, around)?, Failures::default());
        Ok(Self { store, cache_dir, options, fleet, slots, failures, room, clock })
    }

    /// The running base of a manifest; the first caller starts it and the others wait for the same start.
    ///
    /// # Errors
    /// It cannot be fetched or started; there is no room for it. All who have waited for that are told.
    pub async fn get(&self, manifest: &BaseManifest, wanted: Wanted) -> Result<InUse> {
        let (arrived, attempt) = (Instant::now(), (manifest.fingerprint.clone(), wanted == Wanted::Now));
        // Nobody puts away what is held by its slot, so from here on the base stays.
        let slot = self.slots.lock().await.entry(manifest.fingerprint.clone()).or_default().clone();
        let start = || self.failures.attempt(&attempt, arrived, self.start(manifest, wanted));
        let started = slot.get_or_try_init(start).await?;
        Ok(started.used(match wanted {
            Wanted::Now => self.clock.fetch_add(1, Ordering::Relaxed),
            Wanted::Again { place } => (FIRST_USE - 1).saturating_sub(place),
        }))
    }

    #[tracing::instrument(name = "gateway.start_base", skip_all, fields(base = %manifest.name))]
    async fn start(&self, manifest: &BaseManifest, wanted: Wanted) -> Result<Started> {
        let folder = self.cache_dir.join(manifest.fingerprint.hex());
        let (tokenizer, device) = match &self.fleet {
            Some(fleet) => self.open(fleet, manifest, &folder).await?,
            None => self.load(manifest, &folder, wanted).await?,
        };
        Ok(Started::new(Base { manifest: manifest.clone(), tokenizer, device }))
    }

    /// On an engine elsewhere.
    async fn open(&self, fleet: &Arc<Fleet>, manifest: &BaseManifest, folder: &Path) -> Result<(Tokenizer, Device)> {
        let files: Vec<_> = manifest.files.iter().filter(|file| !file.name.ends_with(WEIGHTS)).cloned().collect();
        self.store.fetch_folder(&files, folder).await?;
        let opened = fleet.open(&manifest.name, &manifest.fingerprint).await?;
        let max_context = usize::try_from(opened.max_context).unwrap_or(usize::MAX);
        Ok((Tokenizer::open(folder)?, Device::There { fleet: fleet.clone(), max_context }))
    }

    /// On this process' device, others put away for it where they must be.
    async fn load(&self, manifest: &BaseManifest, folder: &Path, wanted: Wanted) -> Result<(Tokenizer, Device)> {
        // Where its files alone are too many they are not fetched for nothing.
        if wanted != Wanted::Now && !self.room.has(manifest).await {
            return Err(Error::NoFreeRoom(manifest.name.to_string()));
        }
        self.store.fetch_folder(&manifest.files, folder).await?;
        let tokenizer = Tokenizer::open(folder)?;
        let options = EngineOptions { compute: manifest.dtype.parse()?, ..self.options.clone() };
        let (there, asked) = (folder.to_owned(), options.clone());
        let needed = tokio::task::spawn_blocking(move || tailor_engine::demand(&there, &asked)).await;
        self.room.make(&self.slots, manifest, needed.map_err(|_| Error::Cut)??, wanted).await?;
        let engine = match begin(folder, options).await {
            Ok(engine) => engine,
            Err(error) => {
                self.room.give_back(manifest).await;
                return Err(error);
            }
        };
        let info = engine.info();
        let size_bytes = info.resident_bytes.saturating_add(info.kv_bytes);
        self.room.settle(&self.slots, manifest, size_bytes, wanted).await;
        tracing::info!(base = %manifest.name, fingerprint = %manifest.fingerprint, size_bytes, "base is resident");
        Ok((tokenizer, Device::here(engine)))
    }

    /// Whether a base is resident, or would be without another's leaving for it, as far as its files tell.
    pub async fn has_room_for(&self, manifest: &BaseManifest) -> bool {
        self.fleet.is_some() || self.room.has(manifest).await
    }

    /// What has an engine here now, and has made a token. To be looked at and let go: it keeps nobody from putting the base away,
    /// but the memory is free only then.
    pub async fn running(&self) -> Vec<Arc<Base>> {
        let slots = self.slots.lock().await;
        let bases = slots.values().filter_map(|slot| slot.get()).map(|started| &started.base);
        let mut running: Vec<_> = bases.filter(|base| base.device.engine().is_some()).cloned().collect();
        running.sort_by(|a, b| a.manifest.name.cmp(&b.manifest.name));
        running
    }

    /// What [`Self::running`] gives by name and fingerprint, the last used first.
    pub async fn by_use(&self) -> Vec<(BaseName, Digest)> {
        let slots = self.slots.lock().await;
        let here = slots.values().filter_map(|slot| slot.get()).filter(|one| one.base.device.engine().is_some());
        let mut here: Vec<&Started> = here.collect();
        // Uses go on meanwhile: each is looked at once.
        here.sort_by_cached_key(|started| Reverse(started.last_used()));
        let names = here.iter().map(|started| &started.base.manifest);
        names.map(|manifest| (manifest.name.clone(), manifest.fingerprint.clone())).collect()
    }
}

/// Starts an engine and has it make one token, so that a base that cannot make one is found out here, and the first caller does
/// not pay for what is made once.
async fn begin(folder: &Path, options: EngineOptions) -> Result<Engine> {
    let engine = Engine::start(folder.to_owned(), options).await?;
    let mut events = engine.generate(GenerateJob::new(vec![0], None, 1)).await?;
    while let Some(event) = events.recv().await {
        event?;
    }
    Ok(engine)
}

#[cfg(test)]
mod tests {
    use tailor_domain::{ErrorCode, Family, FileRef, QuantCode};
    use tailor_testkit::{Fault, FlakyStore, Op, TempDir};

    use super::*;
    use crate::models::Models;
    use crate::routes::Routes;

    #[tokio::test]
    async fn a_start_that_fails_is_made_once_for_all_who_wait_for_it() {
        let folder = TempDir::new();
        let settings = Settings { cache_dir: folder.path().to_owned(), ..Settings::default() };
        let (backend, faults) = FlakyStore::memory();
        let routes = Arc::new(Routes::new(&settings).expect("an address"));
        let models = Models::new(&settings, Store::over(backend, "flaky://"), routes, None).expect("settings");
        let manifest = BaseManifest {
            name: BaseName::try_new("little").expect("a name"),
            fingerprint: Digest::of(b"little"),
            family: Family::Decoder,
            model_type: "llama".into(),
            quant: QuantCode::Nf4,
            dtype: "f32".into(),
            parameters: 1,
            files: vec![FileRef { name: "config.json".into(), digest: Digest::of(b"never stored"), size_bytes: 12 }],
            created_at_ms: 1,
            merged_from: None,
        };
        // It takes a while, so that all are there before it fails.
        faults.fail_all(Op::Get, Fault::Slow);
        let all = (0..20).map(|_| models.bases.get(&manifest, Wanted::Now));
        for said in futures::future::join_all(all).await {
            let Err(error) = said else { panic!("its file is nowhere") };
            assert_eq!(error.code(), ErrorCode::NotFound, "{error}");
        }
        assert_eq!(faults.count(Op::Get), 1, "one start for twenty");
        let Err(later) = models.bases.get(&manifest, Wanted::Now).await else { panic!("its file is nowhere") };
        assert_eq!((later.code(), faults.count(Op::Get)), (ErrorCode::NotFound, 2), "who comes later tries again");
    }
}
