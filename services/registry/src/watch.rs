//! The watch: what every alias and rollout is, and from then on every change, to whoever keeps a table of them.
//!
//! A watcher is somewhere in the log of changes and names that place when it comes back, so nothing is missed while it was
//! away. Its place is before the first announcement whose record it has not been sent (see [`crate::changes`]); so after a
//! break some of what follows may be sent again, and the receiver's rule is to take only what is newer than what it has.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tailor_blobs::numbered_key;
use tailor_domain::{AdapterManifest, AdapterName, AliasMove, AliasName, Rollout, Version};
use tokio::sync::mpsc;

use crate::changes::{Announced, Kind, Tail};
use crate::{Error, Registry, Result, aliases, rollouts};

/// An announcement older than this whose record is not there was made by a writer that died.
const DEAD_AFTER_MS: u64 = 10 * 60 * 1000;
/// One older than this is looked for less often: its writer is slow at best.
const SLOW_AFTER_MS: u64 = 5000;
const SLOW_TURNS: u64 = 25;
/// Adapters read at once for a snapshot.
const READS_AT_ONCE: usize = 16;
/// Announcements taken in at once.
const BATCH: u64 = 256;

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    Alias { adapter: AdapterName, entry: AliasMove, target: Option<AdapterManifest> },
    Rollout { adapter: AdapterName, rollout: Rollout, alias_seq: u64, canary: Option<AdapterManifest> },
    SnapshotEnd,
    Confirmation,
}

/// What is told, and where to go on after it.
pub type Message = (u64, Told);

/// One watcher's place in the log.
struct Place {
    /// The next announcement to look at.
    next: u64,
    /// Announced and not there yet, by number.
    pending: BTreeMap<u64, Arc<Announced>>,
    /// How often the pending ones were looked for.
    turns: u64,
}

impl Place {
    /// Everything up to here has been sent.
    fn settled(&self) -> u64 {
        self.pending.keys().next().copied().unwrap_or(self.next) - 1
    }
}

impl Registry {
    /// Sends changes until the receiver is gone.
    ///
    /// # Errors
    /// [`Error::NotReady`]: there is no change `after`. [`Error::Store`].
    pub async fn watch(&self, after: u64, to: &mpsc::Sender<Message>) -> Result<()> {
        // Before anything is read: what is made from now on is in a later look.
        let mut looks = self.changes.subscribe();
        let end = self.changes.end().await?;
        if after > end {
            return Err(Error::NotReady {
                what: format!("there is no change {after}; the last one is {end}"),
                remedy: "begin with 0: this may be another store than the one you have watched".into(),
            });
        }
        let mut place = Place { next: after + 1, pending: BTreeMap::new(), turns: 0 };
        if after == 0 {
            // The log's end was read first, so whatever is left out here is announced behind it.
            place.next = end + 1;
            if !self.send_snapshot(end, to).await? {
                return Ok(());
            }
        }
        loop {
            let Tail { end, .. } = *looks.borrow_and_update();
            if !self.send_changes(&mut place, end, to).await? {
                return Ok(());
            }
            // A place ahead of the look is a place that the look says nothing about.
            if place.next == end + 1 && to.send((place.settled(), Told::Confirmation)).await.is_err() {
                return Ok(());
            }
            tokio::select! {
                changed = looks.changed() => if changed.is_err() { return Ok(()) },
                () = to.closed() => return Ok(()),
            }
        }
    }

    /// Whether the receiver is still there.
    async fn send_snapshot(&self, end: u64, to: &mpsc::Sender<Message>) -> Result<bool> {
        let names = self.store.list_children("adapters").await?.folders;
        let mut read = stream::iter(names).map(|name| self.told_of(name)).buffered(READS_AT_ONCE);
        while let Some(told) = read.try_next().await? {
            for told in told {
                if to.send((0, told)).await.is_err() {
                    return Ok(false);
                }
            }
        }
        Ok(to.send((end, Told::SnapshotEnd)).await.is_ok())
    }

    /// All that is to be told of an adapter.
    async fn told_of(&self, name: String) -> Result<Vec<Told>> {
        let adapter = AdapterName::try_new(name)?;
        let mut told = Vec::new();
        for alias in self.store.list_children(&aliases::aliases_prefix(&adapter)).await?.folders {
            let alias = AliasName::try_new(alias)?;
            let Some(entry) = self.last_move(&adapter, &alias).await? else { continue };
            let alias_seq = entry.seq;
            told.push(self.told_alias(&adapter, entry).await?);
            if let Some(rollout) = self.last_rollout(&adapter, &alias).await? {
                told.push(self.told_rollout(&adapter, rollout, alias_seq).await?);
            }
        }
        Ok(told)
    }

    /// Everything announced up to `end` and what was pending. Whether the receiver is still there.
    async fn send_changes(&self, place: &mut Place, end: u64, to: &mpsc::Sender<Message>) -> Result<bool> {
        while place.next <= end {
            let last = end.min(place.next + BATCH - 1);
            place.pending.extend(self.changes.read(place.next, last).await?);
            place.next = last + 1;
            if !self.send_pending(place, to).await? {
                return Ok(false);
            }
        }
        self.send_pending(place, to).await
    }

    async fn send_pending(&self, place: &mut Place, to: &mpsc::Sender<Message>) -> Result<bool> {
        place.turns += 1;
        for (number, announced) in place.pending.clone() {
            let age_ms = (self.clock)().saturating_sub(announced.at_ms);
            if age_ms > SLOW_AFTER_MS && !place.turns.is_multiple_of(SLOW_TURNS) {
                continue;
            }
            let told = self.told(&announced).await?;
            let dead = told.is_none() && age_ms > DEAD_AFTER_MS;
            if told.is_some() || dead {
                place.pending.remove(&number);
            }
            if let Some(told) = told
                && to.send((place.settled(), told)).await.is_err()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The record that was announced, once it is there.
    async fn told(&self, announced: &Announced) -> Result<Option<Told>> {
        let Announced { adapter, alias, seq, .. } = announced;
        Ok(match announced.kind {
            Kind::Alias => {
                let key = numbered_key(&aliases::log_prefix(adapter, alias), *seq);
                match self.store.find_json::<AliasMove>(&key).await? {
                    Some(entry) => Some(self.told_alias(adapter, entry).await?),
                    None => None,
                }
            }
            Kind::Rollout => {
                let key = numbered_key(&rollouts::log_prefix(adapter, alias), *seq);
                match self.store.find_json::<Rollout>(&key).await? {
                    Some(rollout) => {
                        let alias_seq = self.last_move(adapter, alias).await?.map_or(0, |last| last.seq);
                        Some(self.told_rollout(adapter, rollout, alias_seq).await?)
                    }
                    None => None,
                }
            }
        })
    }

    async fn told_alias(&self, adapter: &AdapterName, entry: AliasMove) -> Result<Told> {
        let target = self.manifest_if_there(adapter, entry.to).await?;
        Ok(Told::Alias { adapter: adapter.clone(), entry, target })
    }

    async fn told_rollout(&self, adapter: &AdapterName, rollout: Rollout, alias_seq: u64) -> Result<Told> {
        let canary = self.manifest_if_there(adapter, rollout.canary).await?;
        Ok(Told::Rollout { adapter: adapter.clone(), rollout, alias_seq, canary })
    }

    async fn manifest_if_there(&self, adapter: &AdapterName, version: Version) -> Result<Option<AdapterManifest>> {
        match self.manifest(adapter, version).await {
            Ok(manifest) => Ok(Some(AdapterManifest::clone(&manifest))),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
