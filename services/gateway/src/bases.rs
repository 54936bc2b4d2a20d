//! Bases in service: fetched, mapped and started at their first use, once, however many ask at the same time.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use tailor_blobs::Store;
use tailor_constrain::Constraints;
use tailor_domain::{BaseManifest, Digest, Family};
use tailor_engine::{Engine, EngineOptions, GenerateJob};
use tailor_serverkit::Settings;
use tailor_text::Tokenizer;
use tokio::sync::{Mutex, OnceCell};

use crate::answer::SharedConstraints;
use crate::error::{Error, Result};

/// A base that answers.
pub struct Base {
    pub manifest: BaseManifest,
    pub engine: Engine,
    pub tokenizer: Tokenizer,
    constraints: OnceCell<SharedConstraints>,
}

impl Base {
    pub fn is_encoder_decoder(&self) -> bool {
        self.manifest.family == Family::EncoderDecoder
    }

    /// What its answers can be held to; made at the first use, since few need it and a large vocabulary takes a while.
    pub async fn constraints(&self) -> Result<SharedConstraints> {
        let make = || async {
            let (tokenizer, info) = (self.tokenizer.clone(), self.engine.info());
            let made = move || Constraints::new(&tokenizer, info.vocab_size, &info.eos_ids);
            Ok(Arc::new(tokio::task::spawn_blocking(made).await.map_err(|_| Error::Cut)??))
        };
        self.constraints.get_or_try_init(make).await.cloned()
    }
}

type Slot = Arc<OnceCell<Arc<Base>>>;

pub struct Bases {
    store: Store,
    cache_dir: PathBuf,
    options: EngineOptions,
    /// By fingerprint: a name may come to mean another base, a fingerprint never.
    slots: Mutex<HashMap<Digest, Slot>>,
}

impl Bases {
    pub fn new(settings: &Settings, store: Store) -> Self {
        let options = EngineOptions {
            max_queue: settings.gateway.max_queue,
            max_queue_tokens: settings.gateway.max_queue_tokens,
            max_batch: settings.gateway.max_batch,
            kv_bytes: settings.gateway.kv_bytes,
            ..EngineOptions::default()
        };
        Self { store, cache_dir: settings.cache_dir.join("bases"), options, slots: Mutex::default() }
    }

    /// The running base of a manifest; the first caller starts it and the others wait for the same start.
    pub async fn get(&self, manifest: &BaseManifest) -> Result<Arc<Base>> {
        let slot = self.slots.lock().await.entry(manifest.fingerprint.clone()).or_default().clone();
        slot.get_or_try_init(|| self.start(manifest)).await.cloned()
    }

    #[tracing::instrument(name = "gateway.start_base", skip_all, fields(base = %manifest.name))]
    async fn start(&self, manifest: &BaseManifest) -> Result<Arc<Base>> {
        let folder = self.cache_dir.join(manifest.fingerprint.hex());
        self.store.fetch_folder(&manifest.files, &folder).await?;
        let tokenizer = Tokenizer::open(&folder)?;
        let options = EngineOptions { compute: manifest.dtype.parse()?, ..self.options.clone() };
        let engine = Engine::start(folder, options).await?;
        warm(&engine).await?;
        let resident_bytes = engine.info().resident_bytes;
        tracing::info!(base = %manifest.name, fingerprint = %manifest.fingerprint, resident_bytes, "base is resident");
        Ok(Arc::new(Base { manifest: manifest.clone(), engine, tokenizer, constraints: OnceCell::new() }))
    }

    /// What is resident now, and has made a token.
    pub async fn running(&self) -> Vec<Arc<Base>> {
        let slots = self.slots.lock().await;
        let mut running: Vec<_> = slots.values().filter_map(|slot| slot.get().cloned()).collect();
        running.sort_by(|a, b| a.manifest.name.cmp(&b.manifest.name));
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
