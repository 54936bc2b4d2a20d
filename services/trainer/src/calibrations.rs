//! What workers say of their machines: one object for each kind of machine, written by the first worker on it; and that they
//! are there, one object a worker, made anew every few minutes.
//!
//! A job is refused where no worker that is there can hold it, and not accepted because one could that is gone. What only a GPU
//! can do is accepted where one has been: GPUs come and go with the queue's length.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tailor_blobs::Store;
use tailor_domain::Digest;
use tailor_plan::{Calibration, Compute};
use tailor_queue::Class;
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
const RECIPE: &str = "calibration-1";
/// Between two signs of life.
const EVERY: Duration = Duration::from_secs(4 * 60);
/// A worker that has given none for so long is gone: three were lost, and one more is late.
const SILENCE_MS: u64 = 15 * 60 * 1000;
/// A kind of machine that nobody has seen for so long is forgotten, and measured anew if it comes back.
const FORGOTTEN_MS: u64 = 30 * 24 * 3600 * 1000;
/// Signs of workers that never said goodbye are cleared away after this.
const STALE_MS: u64 = 24 * 3600 * 1000;

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

/// A kind of machine, and when a worker on it was last seen.
struct Known {
    key: String,
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
        let calibration = match self.store.find_json::<Calibration>(&calibration_key(&trainer)).await? {
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

    async fn known(&self, now_ms: u64) -> Result<Vec<Known>> {
        let mut sightings: HashMap<String, Vec<Sighting>> = HashMap::new();
        for key in self.store.list(SIGHTINGS).await? {
            if let Some((trainer, sighting)) = Sighting::of(&key) {
                sightings.entry(trainer.to_owned()).or_default().push(sighting);
            }
        }
        let mut all = Vec::new();
        for key in self.store.list(FOLDER).await? {
            let calibration = match self.store.find_json::<Calibration>(&key).await {
                Ok(Some(calibration)) => calibration,
                Ok(None) => continue,
                Err(error) if error.retryable() => return Err(error.into()),
                // Of a newer version, or damaged: no reason to plan for none of the others.
                Err(error) => {
                    tracing::warn!(key, %error, "a trainer is left out of plans");
                    continue;
                }
            };
            let name = key.strip_prefix(FOLDER).and_then(|name| name.strip_prefix('/')?.strip_suffix(".json"));
            let own = name.and_then(|name| sightings.get(name)).map_or(&[][..], Vec::as_slice);
            let is_there = own.iter().any(|one| !one.left && now_ms.saturating_sub(one.at_ms) < SILENCE_MS);
            let seen_at_ms = own.iter().map(|one| one.at_ms).max().unwrap_or(0);
            let seen_at_ms = seen_at_ms.max(calibration.measured_at_ms);
            all.push(Known { key, calibration, seen_at_ms, is_there });
        }
        Ok(all)
    }

    /// Deletes what has not been seen for long: kinds of machines, and workers that never said goodbye.
    async fn forget(&self, now_ms: u64) -> Result<()> {
        let age = |at_ms: u64| now_ms.saturating_sub(at_ms);
        for kind in self.known(now_ms).await? {
            if age(kind.seen_at_ms) > FORGOTTEN_MS {
                self.store.delete(&kind.key).await?;
            }
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
}

impl Presence {
    /// Says every few minutes that the worker is there, and at the end that it goes.
    pub async fn keep(mut self, stop: CancellationToken) {
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
        }
    }

    async fn say(&mut self, now_ms: u64, left: bool) -> Result<()> {
        // Somebody may have forgotten this kind of machine.
        self.store.create_json(&calibration_key(&self.trainer), &self.calibration).await?;
        let sighting = Sighting { at_ms: now_ms, worker: self.worker.clone(), left };
        let key = sighting.key(&self.trainer);
        self.store.create_json(&key, &sighting).await?;
        if let Some(last) = self.last.replace(key.clone()).filter(|last| *last != key) {
            self.store.delete(&last).await?;
        }
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
mod tests {
    use tailor_plan::Device as Place;

    use super::*;

    const MINUTE: u64 = 60_000;
    const START: u64 = 1_700_000_000_000;

    fn calibration(gib: u64, measured_at_ms: u64) -> Calibration {
        on(Place::cpu("a host", gib << 30, true), measured_at_ms)
    }

    fn on(device: Place, measured_at_ms: u64) -> Calibration {
        Calibration { device, threads: 2, rates: BTreeMap::new(), measured_at_ms }
    }

    fn trainer(gib: u64) -> String {
        format!("{gib:064x}")
    }

    async fn planned_for(calibrations: &Calibrations, now_ms: u64) -> Vec<u64> {
        planned_as(calibrations, Class::Cpu, now_ms).await
    }

    async fn planned_as(calibrations: &Calibrations, class: Class, now_ms: u64) -> Vec<u64> {
        let all = calibrations.to_plan_for(class, now_ms).await.expect("read");
        all.iter().map(|calibration| calibration.device.memory_bytes >> 30).collect()
    }

    #[tokio::test]
    async fn only_machines_that_are_there_are_planned_for_and_else_the_last_that_was() {
        let calibrations = Calibrations::of(&Store::memory());
        assert!(planned_for(&calibrations, START).await.is_empty(), "nobody has said anything");
        let come = async |gib, at| calibrations.presence(trainer(gib), calibration(gib, at), at).await.expect("stored");
        let mut large = come(64, START).await;
        let mut small = come(16, START + MINUTE).await;
        assert_eq!(planned_for(&calibrations, START + 2 * MINUTE).await.len(), 2);
        // The large one is silent from here on.
        small.say(START + 14 * MINUTE, false).await.expect("stored");
        assert_eq!(planned_for(&calibrations, START + 16 * MINUTE).await, [16]);
        assert_eq!(planned_for(&calibrations, START + 40 * MINUTE).await, [16], "none is there, and it was last");
        large.say(START + 41 * MINUTE, false).await.expect("stored");
        assert_eq!(planned_for(&calibrations, START + 42 * MINUTE).await, [64]);
    }

    #[tokio::test]
    async fn a_worker_that_says_goodbye_counts_no_more_at_once_unless_another_is_like_it() {
        let calibrations = Calibrations::of(&Store::memory());
        let come =
            async |gib| calibrations.presence(trainer(gib), calibration(gib, START), START).await.expect("stored");
        let (mut first, mut second) = (come(64).await, come(64).await);
        first.say(START + MINUTE, true).await.expect("stored");
        let _small = come(16).await;
        assert_eq!(planned_for(&calibrations, START + 2 * MINUTE).await.len(), 2, "one like it is there");
        second.say(START + 3 * MINUTE, true).await.expect("stored");
        assert_eq!(planned_for(&calibrations, START + 4 * MINUTE).await, [16]);
        let signs = calibrations.store.list(SIGHTINGS).await.expect("listed");
        assert_eq!(signs.len(), 3, "one each: {signs:?}");
    }

    #[tokio::test]
    async fn a_gpu_that_is_gone_is_planned_for_where_only_a_gpu_will_do_and_is_missed_until_it_comes_back() {
        let calibrations = Calibrations::of(&Store::memory());
        let absent = async |now| calibrations.absences(now).await.expect("read");
        let never = |class| Absence { class, seen_at_ms: None };
        assert_eq!(absent(START).await, [never(Class::Cpu), never(Class::Gpu)]);
        let _host = calibrations.presence(trainer(16), calibration(16, START), START).await.expect("stored");
        assert_eq!(absent(START).await, [never(Class::Gpu)]);
        assert_eq!(planned_as(&calibrations, Class::Gpu, START).await, [16], "there never was one");
        let card = on(Place::gpu("a card", 80 << 30), START);
        let mut card = calibrations.presence(trainer(80), card, START).await.expect("stored");
        assert_eq!(planned_as(&calibrations, Class::Gpu, START).await.len(), 2);
        assert!(absent(START).await.is_empty());
        card.say(START + MINUTE, true).await.expect("stored");
        let later = START + 2 * MINUTE;
        assert_eq!(absent(later).await, [Absence { class: Class::Gpu, seen_at_ms: Some(START + MINUTE) }]);
        assert_eq!(planned_as(&calibrations, Class::Gpu, later).await.len(), 2, "it may come back");
        assert_eq!(planned_for(&calibrations, later).await, [16], "what a host can do is not for one that is gone");
        let there = calibrations.there(later).await.expect("read");
        assert_eq!(there.len(), 1, "{there:?}");
        card.say(later, false).await.expect("stored");
        assert!(absent(later).await.is_empty());
    }

    #[tokio::test]
    async fn a_machine_that_cannot_be_read_hides_no_other() {
        let calibrations = Calibrations::of(&Store::memory());
        let _host = calibrations.presence(trainer(16), calibration(16, START), START).await.expect("stored");
        let newer =
            br#"{"device":{"name":"new","kind":"tpu","memory_bytes":1},"threads":1,"rates":{},"measured_at_ms":0}"#;
        let written = calibrations.store.create_raw(&calibration_key(&trainer(1)), newer.as_slice()).await;
        assert!(written.expect("stored").is_none());
        assert_eq!(planned_for(&calibrations, START).await, [16]);
    }

    #[tokio::test]
    async fn what_nobody_has_seen_for_a_month_is_forgotten_until_it_comes_back() {
        let calibrations = Calibrations::of(&Store::memory());
        let mut old = calibrations.presence(trainer(64), calibration(64, START), START).await.expect("stored");
        let later = START + FORGOTTEN_MS + MINUTE;
        let _new = calibrations.presence(trainer(16), calibration(16, later), later).await.expect("stored");
        calibrations.forget(later).await.expect("forgotten");
        assert_eq!(calibrations.store.list(FOLDER).await.expect("listed").len(), 1);
        assert_eq!(calibrations.store.list(SIGHTINGS).await.expect("listed").len(), 1);
        old.say(later, false).await.expect("stored anew");
        assert_eq!(planned_for(&calibrations, later).await.len(), 2);
    }
}
