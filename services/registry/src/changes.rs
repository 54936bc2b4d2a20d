//! The log of changes: one order over the moves of all aliases and rollouts, so that a watcher can say how far it is.
//!
//! A change is announced before it is made: `changes/<n>.json` names the record that is about to be created. A writer that
//! dies in between leaves an announcement of nothing, which readers pass over after a while; the other way round it would
//! leave a move that nobody is told of. A record that is announced and not there yet is *pending*: readers go on past it
//! and look again, and say that they have got no further than before it.
//!
//! One task of each registry looks for new announcements, every few milliseconds while somebody watches, at once when this
//! registry has made a change itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tailor_blobs::{Store, numbered_key};
use tailor_domain::{AdapterName, AliasName};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::Result;

const PREFIX: &str = "changes";
/// Announcements kept in memory, so that many watchers cost one read each.
const KEPT: usize = 1024;
/// Announcements read in one go before the watchers are told.
const BURST: u64 = 256;

/// `changes/<n>.json`: which record is about to be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Announced {
    pub kind: Kind,
    pub adapter: AdapterName,
    pub alias: AliasName,
    /// Of the alias' or the rollout's own log.
    pub seq: u64,
    pub at_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Alias,
    Rollout,
}

/// How far the log was seen to reach, and how often that was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tail {
    pub end: u64,
    pub looks: u64,
}

/// Cheap to clone; clones share what is known.
#[derive(Clone)]
pub(crate) struct Changes {
    store: Store,
    tail: Arc<watch::Sender<Tail>>,
    made: Arc<Notify>,
    kept: Arc<Mutex<BTreeMap<u64, Arc<Announced>>>>,
}

impl Changes {
    pub fn new(store: Store) -> Self {
        Self { store, tail: Arc::new(watch::Sender::default()), made: Arc::default(), kept: Arc::default() }
    }

    /// Says what is about to be created. To be called before each create of an alias' move or a rollout's record.
    pub async fn announce(&self, announced: Announced) -> Result<()> {
        let number = self.store.append_numbered(PREFIX, |_| announced.clone()).await?;
        tracing::debug!(number, kind = ?announced.kind, adapter = %announced.adapter, "announced");
        Ok(())
    }

    /// Says that the announced record is there, so that nobody waits for the next look.
    pub fn made(&self) {
        self.made.notify_one();
    }

    /// Changes each time the log was looked at.
    pub fn subscribe(&self) -> watch::Receiver<Tail> {
        let tail = self.tail.subscribe();
        // Nobody may have watched until now.
        self.made.notify_one();
        tail
    }

    /// The log's end as the store has it now.
    pub async fn end(&self) -> Result<u64> {
        Ok(self.store.last_number(PREFIX).await?)
    }

    /// Announcements `from..=to`, from memory where they are there.
    pub async fn read(&self, from: u64, to: u64) -> Result<Vec<(u64, Arc<Announced>)>> {
        let known: Vec<_> = {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.range(from..=to).map(|(number, announced)| (*number, announced.clone())).collect()
        };
        if known.len() as u64 == (to + 1).saturating_sub(from) {
            return Ok(known);
        }
        let mut read = Vec::new();
        for number in from..=to {
            let announced: Announced = self.store.get_json(&numbered_key(PREFIX, number)).await?;
            read.push((number, Arc::new(announced)));
        }
        Ok(read)
    }

    /// Follows the log until `stop`.
    pub async fn follow(self, every: Duration, stop: CancellationToken) {
        let mut away = false;
        loop {
            let watched = self.tail.receiver_count() > 0;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.made.notified() => {}
                () = tokio::time::sleep(every), if watched => {}
            }
            if self.tail.receiver_count() == 0 {
                continue;
            }
            match self.look().await {
                Ok(()) => away = false,
                Err(error) if !away => {
                    away = true;
                    tracing::warn!(%error, "the log of changes cannot be read; watchers are not told that they are up to date");
                }
                Err(_) => {}
            }
        }
    }

    /// One look at the log's end.
    async fn look(&self) -> Result<()> {
        let seen = self.tail.borrow().end;
        let mut end = seen;
        if seen == 0 {
            // The first look may find years of changes, which nobody here has asked for.
            end = self.end().await?;
        } else {
            while end - seen < BURST {
                let next: Option<Announced> = self.store.find_json(&numbered_key(PREFIX, end + 1)).await?;
                let Some(next) = next else { break };
                end += 1;
                let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.insert(end, Arc::new(next));
                while kept.len() > KEPT {
                    kept.pop_first();
                }
            }
            if end - seen == BURST {
                // Nobody has watched for long; whoever comes back from before reads what it missed itself.
                end = self.end().await?;
            }
        }
        self.tail.send_modify(|tail| *tail = Tail { end, looks: tail.looks + 1 });
        Ok(())
    }
}
