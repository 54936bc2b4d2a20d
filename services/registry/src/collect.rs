//! Keeping house: what the rules no longer keep is deleted, what was deleted long enough ago is purged, and the blobs that
//! nothing names any more are collected in two phases (`tailor_blobs::gc` has the argument why that is safe).
//!
//! One call does what is due and says what waits:
//!
//! 1. an open round whose grace period is over is swept;
//! 2. retention deletes versions (which can be undone), and deletions older than `registry.undelete_ms` become purges;
//! 3. without an open round, what is garbage now is marked.
//!
//! It may be called at any time, by any number of registries, and be broken off anywhere.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::Value;
use tailor_blobs::gc::{Mark, StoredAt, Swept};
use tailor_domain::{AdapterName, Digest, Version};

use crate::aliases::Reason;
use crate::life::Change;
use crate::retention::Aged;
use crate::{Registry, Result};

/// What a collection did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collected {
    /// Deleted because no rule keeps them.
    pub expired: Vec<(AdapterName, Version)>,
    /// Deleted long enough ago.
    pub purged: Vec<(AdapterName, Version)>,
    /// The round that ended in this call.
    pub swept: Option<Swept>,
    /// What waits for the end of its grace period.
    pub waiting: Option<Waiting>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// 0 where nothing was written (dry run).
    pub round: u64,
    pub blobs: u64,
    pub size_bytes: u64,
    pub due_at_ms: u64,
}

/// What keeps no blob alive.
#[derive(Debug, Default)]
struct Dead {
    /// Numbers of purged versions that no alias needs.
    versions: HashMap<AdapterName, BTreeSet<u64>>,
    /// Up to which number a dataset's versions are deleted for good.
    datasets: HashMap<String, u64>,
}

impl Dead {
    /// Whether a record's digests count as references.
    fn spares(&self, key: &str) -> bool {
        let parts: Vec<&str> = key.split('/').collect();
        let number = |name: &str| name.strip_suffix(".json").and_then(|digits| digits.parse::<u64>().ok());
        match parts.as_slice() {
            // Copies of versions, which count for themselves.
            ["adapters", _, "segments", ..] => false,
            ["adapters", name, "versions", file] => {
                let dead = AdapterName::try_new(*name).ok().and_then(|name| self.versions.get(&name));
                !dead.zip(number(file)).is_some_and(|(dead, number)| dead.contains(&number))
            }
            ["datasets", name, file] => {
                self.datasets.get(*name).zip(number(file)).is_none_or(|(last, number)| number > *last)
            }
            _ => true,
        }
    }
}

impl Registry {
    /// Does what is due. With `dry_run` nothing is written, and the answer says what would be done.
    ///
    /// # Errors
    /// [`crate::Error::Store`]: also when another registry is sweeping.
    pub async fn collect(&self, dry_run: bool, reason: &Reason) -> Result<Collected> {
        let mut done = Collected::default();
        let open = self.store.waiting_mark().await?;
        if let Some((round, mark)) = &open {
            if !dry_run && mark.due_at_ms() <= (self.clock)() {
                done.swept = Some(self.sweep(*round, mark).await?);
            } else {
                done.waiting = Some(waiting(*round, mark));
            }
        }
        let mut planned = Dead::default();
        for adapter in self.adapter_names().await? {
            let (expired, purged) = self.keep_house(&adapter, dry_run, reason).await?;
            planned.versions.insert(adapter.clone(), purged.iter().map(|version| version.0).collect());
            done.expired.extend(expired.into_iter().map(|version| (adapter.clone(), version)));
            done.purged.extend(purged.into_iter().map(|version| (adapter.clone(), version)));
        }
        if done.waiting.is_none() {
            done.waiting = self.mark(dry_run, planned).await?;
        }
        Ok(done)
    }

    async fn sweep(&self, round: u64, mark: &Mark) -> Result<Swept> {
        let claim = self.store.claim_round(round, (self.clock)()).await?;
        let live = self.live_blobs(Dead::default()).await?;
        let swept = self.store.sweep(&claim, mark, &live, &*self.clock).await?;
        tracing::info!(round, deleted = swept.deleted, bytes = swept.deleted_bytes, kept = swept.kept, "collected");
        Ok(swept)
    }

    async fn mark(&self, dry_run: bool, planned: Dead) -> Result<Option<Waiting>> {
        let now = (self.clock)();
        let blobs = self.store.list_blobs().await?;
        let live = self.live_blobs(planned).await?;
        let old = |blob: &StoredAt| blob.modified_at_ms.saturating_add(self.house.grace_ms) <= now;
        let candidates: Vec<StoredAt> =
            blobs.into_iter().filter(|blob| old(blob) && !live.contains(&blob.digest)).collect();
        if candidates.is_empty() {
            return Ok(None);
        }
        let mark = Mark { at_ms: now, grace_ms: self.house.grace_ms, candidates };
        let round = if dry_run { None } else { self.store.open_with(&mark).await? };
        Ok(Some(waiting(round.unwrap_or(0), &mark)))
    }

    /// Applies the rules to one adapter. Returns what is deleted and what is purged, or would be.
    async fn keep_house(
        &self,
        adapter: &AdapterName,
        dry_run: bool,
        reason: &Reason,
    ) -> Result<(Vec<Version>, Vec<Version>)> {
        let now = (self.clock)();
        let life = self.life(adapter).await?;
        let rules = self.retention(adapter).await?.and_then(|retention| retention.rules);
        if life.count() == 0 && rules.is_none() {
            return Ok((Vec::new(), Vec::new()));
        }
        let needed = self.needed(adapter).await?;
        let due = |version: &Version| {
            let gone = life.of(*version);
            gone.is_some_and(|gone| !gone.purged && gone.deleted_at_ms.saturating_add(self.house.undelete_ms) <= now)
        };
        let purged: Vec<u64> = life
            .gone()
            .map(|(version, _)| version)
            .filter(|version| due(version) && !needed.contains(version))
            .map(|version| version.0)
            .collect();
        let expired = match &rules {
            None => Vec::new(),
            Some(rules) => {
                let mut live: Vec<Aged> = Vec::new();
                self.each_manifest(adapter, |manifest| live.push(manifest.into())).await?;
                live.retain(|version| life.of(version.version).is_none());
                rules.expired(&live, &needed, now)
            }
        };
        if !dry_run {
            self.change(adapter, Change::Purge, &purged, reason).await?;
            self.change(adapter, Change::Delete, &expired, reason).await?;
        }
        let versions = |numbers: Vec<u64>| numbers.into_iter().map(Version).collect();
        Ok((versions(expired), versions(purged)))
    }

    /// Every blob that a record names, but for records of what is dead.
    async fn live_blobs(&self, mut dead: Dead) -> Result<HashSet<Digest>> {
        for adapter in self.adapter_names().await? {
            let life = self.life(&adapter).await?;
            let numbers = dead.versions.entry(adapter.clone()).or_default();
            numbers.extend(life.gone().filter(|(_, gone)| gone.purged).map(|(version, _)| version.0));
            if !numbers.is_empty() {
                let needed = self.needed(&adapter).await?;
                numbers.retain(|number| !needed.contains(&Version(*number)));
            }
        }
        dead.datasets = self.deleted_datasets().await?;
        Ok(self.store.references(|key| dead.spares(key)).await?)
    }

    /// By name, up to which number a dataset's versions were deleted longer ago than a deletion can be taken back.
    async fn deleted_datasets(&self) -> Result<HashMap<String, u64>> {
        let now = (self.clock)();
        let mut deleted = HashMap::new();
        for name in self.store.list_children("datasets").await?.folders {
            let entries: Vec<(u64, Value)> = self.store.read_numbered(&format!("datasets/{name}"), 1).await?;
            let is_over = |entry: &Value| {
                let at = entry.get("deleted_at_ms").and_then(Value::as_u64);
                at.is_some_and(|at| at.saturating_add(self.house.undelete_ms) <= now)
            };
            if let Some((last, _)) = entries.iter().rev().find(|(_, entry)| is_over(entry)) {
                deleted.insert(name, *last);
            }
        }
        Ok(deleted)
    }

    pub(crate) async fn adapter_names(&self) -> Result<Vec<AdapterName>> {
        let names = self.store.list_children("adapters").await?.folders;
        Ok(names.into_iter().map(AdapterName::try_new).collect::<Result<_, _>>()?)
    }
}

fn waiting(round: u64, mark: &Mark) -> Waiting {
    let blobs = mark.candidates.len() as u64;
    Waiting { round, blobs, size_bytes: mark.size_bytes(), due_at_ms: mark.due_at_ms() }
}

/// Numbers by adapter, for the report.
pub(crate) fn by_adapter(versions: &[(AdapterName, Version)]) -> BTreeMap<String, Vec<u64>> {
    let mut grouped: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (adapter, version) in versions {
        grouped.entry(adapter.to_string()).or_default().push(version.0);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_dead_keeps_nothing_alive() {
        let name = AdapterName::try_new("grammar").expect("name");
        let versions = HashMap::from([(name, BTreeSet::from([2]))]);
        let dead = Dead { versions, datasets: HashMap::from([("errors".to_owned(), 3)]) };
        for key in [
            "adapters/grammar/versions/00000001.json",
            "adapters/spelling/versions/00000002.json",
            "adapters/grammar/by-job/00000002.json",
            "datasets/errors/00000004.json",
            "datasets/others/00000001.json",
            "bases/tiny/manifest.json",
            "something/of/tomorrow.json",
        ] {
            assert!(dead.spares(key), "{key} counts");
        }
        for key in [
            "adapters/grammar/versions/00000002.json",
            "adapters/grammar/segments/00000001.json",
            "datasets/errors/00000003.json",
        ] {
            assert!(!dead.spares(key), "{key} does not count");
        }
    }
}
