//! Bases in service: fetched, mapped and started at their first use, once, however many ask at the same time.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use tailor_blobs::Store;
use tailor_domain::{BaseManifest, BaseName, Digest, Family};
use tailor_engine::{Engine, EngineOptions, GenerateJob};
use tailor_serverkit::Settings;
use tailor_text::Tokenizer;
use tokio::sync::{Mutex, OnceCell};

use crate::device::Device;
use crate::error::Result;
use crate::fleet::Fleet;

/// A base that answers.
pub struct Base {
    pub manifest: BaseManifest,
    pub tokenizer: Tokenizer,
    pub device: Device,
}

impl Base {
    pub fn is_encoder_decoder(&self) -> bool {
        self.manifest.family == Family::EncoderDecoder
    }
}

/// What an edge leaves in the store: it needs a base's words, not its weights.
const WEIGHTS: &str = ".safetensors";

type Slot = Arc<OnceCell<Arc<Base>>>;

pub struct Bases {
    store: Store,
    cache_dir: PathBuf,
    options: EngineOptions,
    /// Where an edge has its engines.
    fleet: Option<Arc<Fleet>>,
    /// By fingerprint: a name may come to mean another base, a fingerprint never.
    slots: Mutex<HashMap<Digest, Slot>>,
}

impl Bases {
    pub fn new(settings: &Settings, store: Store, fleet: Option<Arc<Fleet>>) -> Self {
        let options = EngineOptions {
            max_queue: settings.gateway.max_queue,
            max_queue_tokens: settings.gateway.max_queue_tokens,
            max_batch: settings.gateway.max_batch,
            kv_bytes: settings.gateway.kv_bytes,
            ..EngineOptions::default()
        };
        let cache_dir = settings.cache_dir.join(if fleet.is_some() { "edge" } else { "bases" });
        Self { store, cache_dir, options, fleet, slots: Mutex::default() }
    }

    /// The running base of a manifest; the first caller starts it and the others wait for the same start.
    pub async fn get(&self, manifest: &BaseManifest) -> Result<Arc<Base>> {
        let slot = self.slots.lock().await.entry(manifest.fingerprint.clone()).or_default().clone();
        slot.get_or_try_init(|| self.start(manifest)).await.cloned()
    }

    #[tracing::instrument(name = "gateway.start_base", skip_all, fields(base = %manifest.name))]
    async fn start(&self, manifest: &BaseManifest) -> Result<Arc<Base>> {
        let folder = self.cache_dir.join(manifest.fingerprint.hex());
        if let Some(fleet) = &self.fleet {
            let files: Vec<_> = manifest.files.iter().filter(|file| !file.name.ends_with(WEIGHTS)).cloned().collect();
            self.store.fetch_folder(&files, &folder).await?;
            let opened = fleet.open(&manifest.name, &manifest.fingerprint).await?;
            let max_context = usize::try_from(opened.max_context).unwrap_or(usize::MAX);
            let device = Device::There { fleet: fleet.clone(), max_context };
            return Ok(Arc::new(Base { manifest: manifest.clone(), tokenizer: Tokenizer::open(&folder)?, device }));
        }
        self.store.fetch_folder(&manifest.files, &folder).await?;
        let tokenizer = Tokenizer::open(&folder)?;
        let options = EngineOptions { compute: manifest.dtype.parse()?, ..self.options.clone() };
        let engine = Engine::start(folder, options).await?;
        warm(&engine).await?;
        let resident_bytes = engine.info().resident_bytes;
        tracing::info!(base = %manifest.name, fingerprint = %manifest.fingerprint, resident_bytes, "base is resident");
        Ok(Arc::new(Base { manifest: manifest.clone(), tokenizer, device: Device::here(engine) }))
    }

    /// What a name meant when its base was last started.
    pub async fn known(&self, name: &BaseName) -> Option<BaseManifest> {
        let slots = self.slots.lock().await;
        let manifests = slots.values().filter_map(|slot| slot.get()).map(|base| &base.manifest);
        let named = manifests.filter(|manifest| manifest.name == *name);
        named.max_by_key(|manifest| manifest.created_at_ms).cloned()
    }

    /// What is resident here now, and has made a token, with its engine.
    pub async fn running(&self) -> Vec<(BaseManifest, Engine)> {
        let slots = self.slots.lock().await;
        let bases = slots.values().filter_map(|slot| slot.get());
        let mut running: Vec<_> =
            bases.filter_map(|base| Some((base.manifest.clone(), base.device.engine()?.clone()))).collect();
        running.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        running
    }
}

/// One token, so that a base that cannot make one is found out here, and the first caller does not pay for what is made once.
async fn warm(engine: &Engine) -> Result<()> {
    let mut events = engine.generate(GenerateJob::new(vec![0], None, 1)).await?;
    while let Some(event) = events.recv().await {
        event?;
    }
    Ok(())
}
