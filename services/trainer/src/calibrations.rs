//! What workers say of their machines: one object for each kind of machine, written by the first worker on it; and that they
//! are there, one object a worker, made anew every few minutes.
//!
//! A job is refused where no worker that is there can hold it, and not accepted because one could that is gone. What only a GPU
//! can do is accepted where one has been in the last 30 days: GPUs come and go with the queue's length.
//!
//! What nobody has seen for as long does not count, and its object goes: with every worker that starts, and once a day while one
//! is there.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tailor_blobs::Store;
use tailor_domain::Digest;
use tailor_plan::{Calibration, Compute};
use tailor_queue::Class;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::journal::now_ms;
use crate::matching::class_on;
use crate::waiting::Absence;

const FOLDER: &str = "trainers";
const SIGHTINGS: &str = "sightings";
const HERE: &str = "here";
const LEFT: &str = "left";
/// Part of every key: raise it when measuring changes.
const RECIPE: &str = "calibration-2";
/// Between two signs of life.
const EVERY: Duration = Duration::from_secs(4 * 60);
/// A worker that has given none for so long is gone: three were lost, and one more is late.
const SILENCE_MS: u64 = 15 * 60 * 1000;
/// A kind of machine that nobody has seen for so long is forgotten, and measured anew if it comes back.
const FORGOTTEN_MS: u64 = 30 * 24 * 3600 * 1000;
/// Signs of workers that never said goodbye are cleared away after this.
const STALE_MS: u64 = 24 * 3600 * 1000;
/// Between two times that a worker which stays clears away what is forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone)]
pub struct Calibrations {
    store: Store,
}

/// A worker's sign of life. All of it is in its key, so that whoever plans lists and reads nothing.
/// `sightings/<calibration>/<at_ms>-<worker>-<here or left>.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Sighting {
    at_ms: u64,
    worker: String,
    /// It has said goodbye.
    left: bool,
}

impl Sighting {
    fn key(&self, trainer: &str) -> String {
        let word = if self.left { LEFT } else { HERE };
        format!("{SIGHTINGS}/{trainer}/{:013}-{}-{word}.json", self.at_ms, self.worker)
    }

    /// The calibration's name, and when what was seen.
    fn of(key: &str) -> Option<(&str, Self)> {
        let (trainer, name) = key.strip_prefix(SIGHTINGS)?.strip_prefix('/')?.split_once('/')?;
        let mut words = name.strip_suffix(".json")?.splitn(3, '-');
        let (at_ms, worker, word) = (words.next()?.parse().ok()?, words.next()?.to_owned(), words.next()?);
        Some((trainer, Self { at_ms, worker, left: word == LEFT }))
    }
}

/// A kind of machine as the store has it, and when a worker on it was last seen.
struct Kind {
    trainer: String,
    /// None where it cannot be read.
    calibration: Option<Calibration>,
    seen_at_ms: u64,
    is_there: bool,
}

impl Kind {
    fn is_forgotten(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.seen_at_ms) > FORGOTTEN_MS
    }

    fn known(self) -> Option<Known> {
        let Self { calibration, seen_at_ms, is_there, .. } = self;
        calibration.map(|calibration| Known { calibration, seen_at_ms, is_there })
    }
}

/// A kind of machine that jobs are planned for.
struct Known {
    calibration: Calibration,
    seen_at_ms: u64,
    is_there: bool,
}

impl Known {
    fn can_run(&self, class: Class) -> bool {
        class <= class_on(&self.calibration.device)
    }
}

/// A worker's own calibration, and its signs of life.
pub struct Presence {
    store: Store,
    worker: String,
    trainer: String,
    calibration: Calibration,
    /// The sign that stands.
    last: Option<String>,
}

impl Calibrations {
    pub fn of(store: &Store) -> Self {
        Self { store: store.clone() }
    }

    /// Writes what this machine has, or as much of it as the worker may take, unless the store knows it; with `measure` also
    /// what it does in a second. From then on the worker is there.
    pub async fn introduce(
        &self,
        device: &Device,
        cache_dir: &Path,
        measure: bool,
        memory_limit: Option<u64>,
    ) -> Result<Presence> {
        let (mut place, threads) = (tailor_train::device(), tailor_train::threads());
        place.memory_bytes = place.memory_bytes.min(memory_limit.unwrap_or(u64::MAX));
        let identity = format!("{RECIPE}\n{}\n{}\n{threads}\n{measure}", place.name, place.memory_bytes);
        let trainer = Digest::of(identity.as_bytes()).hex().to_owned();
        let key = calibration_key(&trainer);
        let found = match self.store.find_json::<Calibration>(&key).await {
            Err(error) if !error.retryable() => {
                // No worker on such a machine could ever say that it is there.
                tracing::warn!(key, %error, "what such machines do is not readable; it is measured anew");
                self.store.delete(&key).await?;
                None
            }
            found => found?,
        };
        let calibration = match found {
            Some(known) => known,
            None => {
                let rates = rates(device, cache_dir, measure).await?;
                tracing::info!(device = place.name, "measured, for plans");
                Calibration { device: place, threads, rates, measured_at_ms: now_ms() }
            }
        };
        let presence = self.presence(trainer, calibration, now_ms()).await?;
        if let Err(error) = self.forget(now_ms()).await {
            tracing::warn!(%error, "machines that are long gone stay known");
        }
        Ok(presence)
    }

    async fn presence(&self, trainer: String, calibration: Calibration, now_ms: u64) -> Result<Presence> {
        let worker = format!("{:016x}", rand::random::<u64>());
        let mut presence = Presence { store: self.store.clone(), worker, trainer, calibration, last: None };
        presence.say(now_ms, false).await?;
        Ok(presence)
    }

    /// What workers that are there have said.
    pub async fn there(&self, now_ms: u64) -> Result<Vec<Calibration>> {
        let known = self.known(now_ms).await?.into_iter();
        Ok(known.filter(|kind| kind.is_there).map(|kind| kind.calibration).collect())
    }

    /// What workers that are there have said, the measured ones first; where none of them can run jobs of this class, also what
    /// the last one said that could. Where none is there or could, what the last one said that was there.
    pub async fn to_plan_for(&self, class: Class, now_ms: u64) -> Result<Vec<Calibration>> {
        let (mut chosen, mut gone): (Vec<Known>, Vec<Known>) =
            self.known(now_ms).await?.into_iter().partition(|kind| kind.is_there);
        if !chosen.iter().any(|kind| kind.can_run(class)) {
            gone.sort_by_key(|kind| std::cmp::Reverse(kind.seen_at_ms));
            let able = gone.iter().position(|kind| kind.can_run(class));
            let last = able.or_else(|| (chosen.is_empty() && !gone.is_empty()).then_some(0));
            chosen.extend(last.map(|at| gone.swap_remove(at)));
        }
        let mut all: Vec<Calibration> = chosen.into_iter().map(|kind| kind.calibration).collect();
        all.sort_by_key(|calibration| calibration.rates.is_empty());
        Ok(all)
    }

    /// The classes of jobs that no worker which is there can run.
    pub async fn absences(&self, now_ms: u64) -> Result<Vec<Absence>> {
        let known = self.known(now_ms).await?;
        let absence = |class: Class| {
            let able = || known.iter().filter(move |kind| kind.can_run(class));
            let is_there = able().any(|kind| kind.is_there);
            (!is_there).then(|| Absence { class, seen_at_ms: able().map(|kind| kind.seen_at_ms).max() })
        };
        Ok(Class::ALL.into_iter().filter_map(absence).collect())
    }

    /// What can be read and is not forgotten.
    async fn known(&self, now_ms: u64) -> Result<Vec<Known>> {
        let kinds = self.kinds(now_ms).await?.into_iter();
        Ok(kinds.filter(|kind| !kind.is_forgotten(now_ms)).filter_map(Kind::known).collect())
    }

    async fn kinds(&self, now_ms: u64) -> Result<Vec<Kind>> {
        let mut sightings: HashMap<String, Vec<Sighting>> = HashMap::new();
        for key in self.store.list(SIGHTINGS).await? {
            if let Some((trainer, sighting)) = Sighting::of(&key) {
                sightings.entry(trainer.to_owned()).or_default().push(sighting);
            }
        }
        let mut all = Vec::new();
        for key in self.store.list(FOLDER).await? {
            let name = key.strip_prefix(FOLDER).and_then(|name| name.strip_prefix('/')?.strip_suffix(".json"));
            let Some(trainer) = name.map(ToOwned::to_owned) else { continue };
            let calibration = match self.store.find_json::<Calibration>(&key).await {
                Ok(Some(calibration)) => Some(calibration),
                Ok(None) => continue,
                Err(error) if error.retryable() => return Err(error.into()),
                // Of a newer version, or damaged: no reason to plan for none of the others.
                Err(error) => {
                    tracing::warn!(key, %error, "a trainer is left out of plans");
                    None
                }
            };
            let own = sightings.get(&trainer).map_or(&[][..], Vec::as_slice);
            let is_there = own.iter().any(|one| !one.left && now_ms.saturating_sub(one.at_ms) < SILENCE_MS);
            let measured_at_ms = calibration.as_ref().map_or(0, |calibration| calibration.measured_at_ms);
            let seen_at_ms = own.iter().map(|one| one.at_ms).max().unwrap_or(0).max(measured_at_ms);
            all.push(Kind { trainer, calibration, seen_at_ms, is_there });
        }
        Ok(all)
    }

    /// Deletes what has not been seen for long: kinds of machines, and workers that never said goodbye.
    async fn forget(&self, now_ms: u64) -> Result<()> {
        let age = |at_ms: u64| now_ms.saturating_sub(at_ms);
        for kind in self.kinds(now_ms).await?.iter().filter(|kind| kind.is_forgotten(now_ms)) {
            self.forget_kind(kind).await?;
        }
        let keys = self.store.list(SIGHTINGS).await?;
        let mut newest: HashMap<&str, u64> = HashMap::new();
        let found: Vec<_> = keys.iter().filter_map(|key| Some((key, Sighting::of(key)?))).collect();
        for (_, (trainer, sighting)) in &found {
            let at_ms = newest.entry(trainer).or_default();
            *at_ms = sighting.at_ms.max(*at_ms);
        }
        for (key, (trainer, sighting)) in &found {
            // The last one says when such a machine was there.
            let is_last = newest.get(trainer) == Some(&sighting.at_ms) && age(sighting.at_ms) <= FORGOTTEN_MS;
            if age(sighting.at_ms) > STALE_MS && !is_last {
                self.store.delete(key).await?;
            }
        }
        Ok(())
    }

    /// A worker of this kind may come back at this very moment. It gives its sign before it looks whether its kind is known, so
    /// whoever has deleted that looks once more for a sign: one of the two puts it back.
    async fn forget_kind(&self, kind: &Kind) -> Result<()> {
        let key = calibration_key(&kind.trainer);
        self.store.delete(&key).await?;
        let signs = self.store.list(&format!("{SIGHTINGS}/{}", kind.trainer)).await?;
        let is_back = signs.iter().filter_map(|key| Sighting::of(key)).any(|(_, sign)| sign.at_ms > kind.seen_at_ms);
        if let Some(calibration) = kind.calibration.as_ref().filter(|_| is_back) {
            self.store.create_json(&key, calibration).await?;
        }
        Ok(())
    }
}

impl Presence {
    /// Says every few minutes that the worker is there, and at the end that it goes; clears away what is forgotten once a day.
    pub async fn keep(mut self, stop: CancellationToken) {
        let mut tidied = Instant::now();
        loop {
            let goes = tokio::select! {
                () = stop.cancelled() => true,
                () = tokio::time::sleep(EVERY) => false,
            };
            if let Err(error) = self.say(now_ms(), goes).await {
                tracing::warn!(%error, "cannot say that this worker is there; jobs may be planned without it");
            }
            if goes {
                return;
            }
            if tidied.elapsed() >= TIDY_EVERY {
                tidied = Instant::now();
                if let Err(error) = Calibrations::of(&self.store).forget(now_ms()).await {
                    tracing::warn!(%error, "machines that are long gone stay known");
                }
            }
        }
    }

    async fn say(&mut self, now_ms: u64, left: bool) -> Result<()> {
        let sighting = Sighting { at_ms: now_ms, worker: self.worker.clone(), left };
        let key = sighting.key(&self.trainer);
        self.store.create_json(&key, &sighting).await?;
        let last = self.last.replace(key.clone()).filter(|last| *last != key);
        // Somebody may have forgotten this kind of machine, or be about to: see `forget_kind`.
        let known = self.store.create_json(&calibration_key(&self.trainer), &self.calibration).await;
        if let Some(last) = last {
            self.store.delete(&last).await?;
        }
        known?;
        Ok(())
    }
}

fn calibration_key(trainer: &str) -> String {
    format!("{FOLDER}/{trainer}.json")
}

/// Empty where nothing is to be measured.
async fn rates(device: &Device, cache_dir: &Path, measure: bool) -> Result<BTreeMap<String, tailor_plan::Rates>> {
    if !measure {
        return Ok(BTreeMap::new());
    }
    let scratch = cache_dir.join(format!("calibration-{}", std::process::id()));
    let span = tracing::info_span!("trainer.calibrate");
    let folder = scratch.clone();
    let measure = move || {
        let each = Compute::ALL.map(|compute| {
            let rates = tailor_train::calibrate(&folder, compute)?;
            Ok::<_, Error>((compute.as_str().to_owned(), rates))
        });
        each.into_iter().collect::<Result<BTreeMap<_, _>>>()
    };
    let measured = device.once("calibration", span, measure).await;
    // Whatever came of it.
    let _ = tokio::fs::remove_dir_all(&scratch).await;
    measured
}

#[cfg(test)]
mod tests;
