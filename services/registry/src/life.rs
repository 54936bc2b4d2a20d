//! Deletion that can be taken back. A version's record never goes, so numbers keep meaning what they meant; what changes is
//! written to a log of its own, `adapters/<name>/life/<seq>.json`, each entry taking the next number by create-if-absent.
//!
//! ```text
//! live ──delete──▶ deleted ──undelete──▶ live
//!                     └──purge, after registry.undelete_ms──▶ purged: its blobs are garbage, its record stays
//! ```
//!
//! What an alias points to is never deleted. A deletion and an alias' move that race may both happen; the version is then
//! served as long as the alias points to it, and neither purged nor its blobs collected.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tailor_blobs::{Store, numbered_key};
use tailor_domain::{AdapterName, Version};

use crate::aliases::Reason;
use crate::versions::AliasedVersion;
use crate::{Error, Registry, Result};

/// Adapters whose lives are remembered; beyond that all are forgotten and read again.
const MAX_REMEMBERED: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Change {
    Delete,
    Undelete,
    Purge,
}

impl Change {
    fn as_str(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Undelete => "undelete",
            Self::Purge => "purge",
        }
    }
}

/// `adapters/<name>/life/<seq>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    change: Change,
    versions: Vec<u64>,
    who: String,
    why: String,
    at_ms: u64,
}

/// What became of a version that is not live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    pub deleted_at_ms: u64,
    pub who: String,
    pub why: String,
    /// Its blobs may be gone; there is no way back.
    pub purged: bool,
}

/// Every version of an adapter that is not live: the fold of its log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Life {
    /// The last entry that was read.
    last: u64,
    gone: BTreeMap<u64, Gone>,
}

impl Life {
    pub fn of(&self, version: Version) -> Option<&Gone> {
        self.gone.get(&version.0)
    }

    pub fn gone(&self) -> impl Iterator<Item = (Version, &Gone)> {
        self.gone.iter().map(|(number, gone)| (Version(*number), gone))
    }

    pub fn count(&self) -> u64 {
        self.gone.len() as u64
    }

    fn take(&mut self, seq: u64, entry: Entry) {
        self.last = seq;
        for version in entry.versions {
            match entry.change {
                Change::Delete => {
                    let (who, why) = (entry.who.clone(), entry.why.clone());
                    let gone = Gone { deleted_at_ms: entry.at_ms, who, why, purged: false };
                    self.gone.entry(version).or_insert(gone);
                }
                Change::Undelete => drop(self.gone.remove(&version)),
                Change::Purge => {
                    if let Some(gone) = self.gone.get_mut(&version) {
                        gone.purged = true;
                    }
                }
            }
        }
    }
}

/// Lives by adapter, as far as they were read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lives(Arc<Mutex<HashMap<AdapterName, Arc<Life>>>>);

impl Lives {
    fn known(&self, adapter: &AdapterName) -> Arc<Life> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(adapter).cloned().unwrap_or_default()
    }

    fn learn(&self, adapter: &AdapterName, life: &Arc<Life>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_REMEMBERED && !known.contains_key(adapter) {
            known.clear();
        }
        known.insert(adapter.clone(), life.clone());
    }

    /// The life as the store has it now: what is known already and what came since.
    async fn of(&self, store: &Store, adapter: &AdapterName) -> Result<Arc<Life>> {
        let known = self.known(adapter);
        let news: Vec<(u64, Entry)> = store.follow_numbered(&prefix(adapter), known.last + 1).await?;
        if news.is_empty() {
            return Ok(known);
        }
        let mut life = Life::clone(&known);
        news.into_iter().for_each(|(seq, entry)| life.take(seq, entry));
        let life = Arc::new(life);
        self.learn(adapter, &life);
        Ok(life)
    }
}

fn prefix(adapter: &AdapterName) -> String {
    format!("adapters/{adapter}/life")
}

impl Registry {
    pub(crate) async fn life(&self, adapter: &AdapterName) -> Result<Arc<Life>> {
        self.lives.of(&self.store, adapter).await
    }

    /// Deletes a version, so that it is neither listed nor the latest; [`Registry::undelete`] takes that back for a while.
    /// One that is deleted already stays as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`]. [`Error::NotReady`]: an alias points to it.
    pub async fn delete(&self, adapter: &AdapterName, version: Version, reason: &Reason) -> Result<AliasedVersion> {
        let found = self.version(adapter, version).await?;
        if found.gone.is_some() {
            return Ok(found);
        }
        if let Some(alias) = found.aliases.first() {
            return Err(Error::NotReady {
                what: format!("version {version} of adapter {adapter} is what alias {alias} points to"),
                remedy: "point the alias elsewhere first (set-alias)".into(),
            });
        }
        self.change(adapter, Change::Delete, &[version.0], reason).await?;
        self.version(adapter, version).await
    }

    /// Takes a deletion back. A version that is live stays so.
    ///
    /// # Errors
    /// [`Error::NotFound`]. [`Error::NotReady`]: it was purged.
    pub async fn undelete(&self, adapter: &AdapterName, version: Version, reason: &Reason) -> Result<AliasedVersion> {
        self.manifest(adapter, version).await?;
        self.change(adapter, Change::Undelete, &[version.0], reason).await?;
        self.version(adapter, version).await
    }

    /// Appends a change of those versions that it changes; nothing if there are none. Returns how many there were.
    ///
    /// # Errors
    /// [`Error::NotReady`]: one is to be undeleted and was purged.
    pub(crate) async fn change(
        &self,
        adapter: &AdapterName,
        change: Change,
        versions: &[u64],
        Reason { who, why }: &Reason,
    ) -> Result<u64> {
        loop {
            let life = self.life(adapter).await?;
            let mut changed = Vec::new();
            for number in versions {
                match (change, life.of(Version(*number))) {
                    (Change::Undelete, Some(Gone { purged: true, .. })) => return Err(purged(adapter, *number)),
                    (Change::Delete, None)
                    | (Change::Undelete, Some(_))
                    | (Change::Purge, Some(Gone { purged: false, .. })) => changed.push(*number),
                    (Change::Delete, Some(_)) | (Change::Undelete, None) | (Change::Purge, _) => {}
                }
            }
            if changed.is_empty() {
                return Ok(0);
            }
            let count = changed.len() as u64;
            let (who, why) = (who.clone(), why.clone());
            let entry = Entry { change, versions: changed, who, why, at_ms: (self.clock)() };
            let key = numbered_key(&prefix(adapter), life.last + 1);
            if self.store.create_json(&key, &entry).await?.is_created() {
                tracing::info!(%adapter, ?change, versions = ?entry.versions, who = %entry.who, "life changed");
                self.note(change.as_str(), &entry.who, &entry.why, &key, &entry).await;
                return Ok(count);
            }
            // Somebody changed something meanwhile: look at what it is now.
        }
    }

    /// Refuses a version that nothing new may rely on.
    pub(crate) async fn require_live(&self, adapter: &AdapterName, version: Version) -> Result<()> {
        match self.life(adapter).await?.of(version) {
            None => Ok(()),
            Some(Gone { purged: true, .. }) => Err(purged(adapter, version.0)),
            Some(gone) => Err(Error::NotReady {
                what: format!("version {version} of adapter {adapter} was deleted by {:?}", gone.who),
                remedy: format!("undelete it first (tailor adapter undelete {adapter}@{version})"),
            }),
        }
    }
}

fn purged(adapter: &AdapterName, version: u64) -> Error {
    Error::NotReady {
        what: format!("version {version} of adapter {adapter} was deleted and purged"),
        remedy: "its bytes are gone or going; publish the adapter again".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(change: Change, versions: &[u64], at_ms: u64) -> Entry {
        Entry { change, versions: versions.to_vec(), who: "ops".into(), why: "old".into(), at_ms }
    }

    #[test]
    fn a_life_is_the_fold_of_its_log() {
        let mut life = Life::default();
        life.take(1, entry(Change::Delete, &[1, 2, 3], 10));
        life.take(2, entry(Change::Undelete, &[2], 20));
        life.take(3, entry(Change::Delete, &[1], 30));
        life.take(4, entry(Change::Purge, &[3], 40));
        let told: Vec<_> = life.gone().map(|(version, gone)| (version.0, gone.deleted_at_ms, gone.purged)).collect();
        assert_eq!(told, [(1, 10, false), (3, 10, true)], "a second deletion does not begin the time anew");
        life.take(5, entry(Change::Purge, &[2], 50));
        assert_eq!(life.of(Version(2)), None, "what is live is not purged");
    }
}
