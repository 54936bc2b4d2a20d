//! The device's room for bases: who takes how much of it, and how those leave that must.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tailor_domain::{BaseManifest, BaseName, Digest};
use tailor_serverkit::Settings;
use tokio::sync::{Mutex, OnceCell};

use super::base::{Slot, Slots, Wanted};
use super::choice::{self, Limits, Stays, Taker};
use crate::error::{Error, Result};
use crate::models::Meters;
use crate::resident::Resident;
use crate::routes::Routes;

const LOOK_EVERY: Duration = Duration::from_millis(5);
/// What is in use or being loaded may be idle in a moment: so long it is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// Adapters on the device, what names need of them, and what is measured: what a base goes or stays by.
pub struct Surroundings {
    pub adapters: Arc<Resident>,
    pub routes: Arc<Routes>,
    pub meters: Arc<Meters>,
}

pub struct Room {
    around: Surroundings,
    /// Names of bases that stay.
    preloaded: Vec<BaseName>,
    /// What the settings give to bases, and to adapters beside them.
    base_bytes: u64,
    adapter_bytes: u64,
    limits: OnceCell<Limits>,
    /// Held from when it is decided who goes until they have gone, so that what they took is not given away twice.
    taken: Mutex<HashMap<Digest, Taken>>,
}

/// What a base takes, from when room is made for it until it has gone.
struct Taken {
    name: BaseName,
    size_bytes: u64,
}

impl Room {
    /// # Errors
    /// A name in `gateway.preload` that is none.
    pub fn new(settings: &Settings, around: Surroundings) -> Result<Self> {
        let gateway = &settings.gateway;
        Ok(Self {
            around,
            preloaded: gateway.preloaded()?,
            base_bytes: gateway.base_bytes,
            adapter_bytes: gateway.adapter_bytes.saturating_add(gateway.adapter_memory_bytes),
            limits: OnceCell::new(),
            taken: Mutex::default(),
        })
    }

    /// Takes `needed` bytes for a base, once those have gone that must.
    ///
    /// # Errors
    /// It would not fit even then, and nobody goes for that; or it is not wanted enough that anybody should go.
    pub async fn make(&self, slots: &Mutex<Slots>, manifest: &BaseManifest, needed: u64, wanted: Wanted) -> Result<()> {
        let give_up_at = Instant::now() + PATIENCE;
        loop {
            match self.try_make(slots, manifest, needed, wanted).await {
                Err(Error::NoRoomForBase { .. }) if wanted == Wanted::Now && Instant::now() < give_up_at => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                made => return made,
            }
        }
    }

    async fn try_make(&self, slots: &Mutex<Slots>, manifest: &BaseManifest, needed: u64, wanted: Wanted) -> Result<()> {
        let limits = self.limits().await;
        let needs = self.around.routes.table().held();
        let mut taken = self.taken.lock().await;
        taken.remove(&manifest.fingerprint);
        if wanted != Wanted::Now {
            let takers = self.takers(&*slots.lock().await, &taken, &needs);
            if choice::next_to_go(&manifest.name, needed, &takers, limits)?.is_some() {
                return Err(Error::NoFreeRoom(manifest.name.to_string()));
            }
        }
        loop {
            // Requests need the slots: they are not locked while a base goes.
            let next = self.next_to_go(&mut *slots.lock().await, &taken, manifest, needed, &needs, limits)?;
            let Some((digest, slot)) = next else { break };
            if let Some(slot) = slot {
                put_away(slot).await;
            }
            if let Some(Taken { name, size_bytes }) = taken.remove(&digest) {
                tracing::info!(base = %name, size_bytes, "base is put away for {}", manifest.name);
            }
            self.around.meters.engines.base_evicted();
        }
        taken.insert(manifest.fingerprint.clone(), Taken { name: manifest.name.clone(), size_bytes: needed });
        Ok(())
    }

    /// A base that was started takes so many bytes: others may have to go for what was not expected. It is there, whether they
    /// can or not.
    pub async fn settle(&self, slots: &Mutex<Slots>, manifest: &BaseManifest, size_bytes: u64, wanted: Wanted) {
        if let Err(error) = self.try_make(slots, manifest, size_bytes, wanted).await {
            tracing::warn!(base = %manifest.name, %error, "a base takes more than was expected, and more than bases may");
            let took = Taken { name: manifest.name.clone(), size_bytes };
            self.taken.lock().await.insert(manifest.fingerprint.clone(), took);
        }
    }

    /// A base that could not be started takes nothing.
    pub async fn give_back(&self, manifest: &BaseManifest) {
        self.taken.lock().await.remove(&manifest.fingerprint);
    }

    /// Whether a base has its room, or would have it without another's leaving; by the size of its files, so about.
    pub async fn has(&self, manifest: &BaseManifest) -> bool {
        let limits = self.limits().await;
        let taken = self.taken.lock().await;
        let together = taken.values().fold(manifest.size_bytes(), |sum, taken| sum.saturating_add(taken.size_bytes));
        taken.is_empty() || taken.contains_key(&manifest.fingerprint) || together <= limits.together
    }

    /// Takes the next base that must go out of its place: from here on whoever asks for it has it started anew.
    fn next_to_go(
        &self,
        slots: &mut Slots,
        taken: &HashMap<Digest, Taken>,
        manifest: &BaseManifest,
        needed: u64,
        needs: &HashSet<Digest>,
        limits: Limits,
    ) -> Result<Option<(Digest, Option<Slot>)>> {
        loop {
            let takers = self.takers(slots, taken, needs);
            let Some(digest) = choice::next_to_go(&manifest.name, needed, &takers, limits)? else { return Ok(None) };
            // Somebody may have pinned one of its adapters since; then it is another's turn.
            if self.around.adapters.forget(&digest, needs) {
                let slot = slots.remove(&digest);
                return Ok(Some((digest, slot)));
            }
        }
    }

    /// All that take room, and why those stay that do.
    fn takers(&self, slots: &Slots, taken: &HashMap<Digest, Taken>, needs: &HashSet<Digest>) -> Vec<Taker> {
        let takers = taken.iter().map(|(digest, taken)| {
            let (last_used, stays) = self.look(slots, digest);
            let stays = stays.or_else(|| self.around.adapters.keep(digest, needs).then_some(Stays::Adapters));
            let (name, size_bytes) = (taken.name.clone(), taken.size_bytes);
            Taker { digest: digest.clone(), name, size_bytes, last_used, stays }
        });
        takers.collect()
    }

    /// When a base was last used, and whether it stays for its own sake.
    fn look(&self, slots: &Slots, digest: &Digest) -> (u64, Option<Stays>) {
        let Some(slot) = slots.get(digest) else { return (0, None) };
        let is_waited_for = Arc::strong_count(slot) > 1;
        // An empty one that nobody waits for is what a start has left that was cut off.
        let Some(started) = slot.get() else { return (0, is_waited_for.then_some(Stays::Loading)) };
        let stays = if is_waited_for || started.is_in_use() {
            Some(Stays::InUse)
        } else {
            self.is_preloaded(slots, &started.base.manifest).then_some(Stays::Preloaded)
        };
        (started.last_used(), stays)
    }

    /// Whether the settings name it, and no younger base has its name now.
    fn is_preloaded(&self, slots: &Slots, manifest: &BaseManifest) -> bool {
        let mut others = slots.values().filter_map(|slot| slot.get()).map(|other| &other.base.manifest);
        self.preloaded.contains(&manifest.name)
            && !others.any(|other| other.name == manifest.name && other.created_at_ms > manifest.created_at_ms)
    }

    async fn limits(&self) -> Limits {
        let ask = || async {
            let device = match self.base_bytes {
                // Looking for a GPU may take a moment.
                0 => tokio::task::spawn_blocking(tailor_engine::device_bytes).await.unwrap_or_default(),
                _ => None,
            };
            let limits = Limits::new(self.base_bytes, device, self.adapter_bytes);
            tracing::info!(together_bytes = limits.together, alone_bytes = limits.alone, "what bases may take");
            limits
        };
        *self.limits.get_or_init(ask).await
    }
}

/// Ends a base's engine; what it took is free when this returns.
async fn put_away(slot: Slot) {
    // Whoever only looks has done with it in a moment.
    while slot.get().is_some_and(|started| Arc::strong_count(&started.base) > 1) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    // It waits for the engine's threads, and gives gigabytes back.
    let _ = tokio::task::spawn_blocking(move || drop(slot)).await;
}
