//! Collecting blobs that nothing refers to, beside writers that may come to refer to them at any moment.
//!
//! Records are never updated, so nothing can count references. Instead a *round* of collection has two phases and a contest:
//!
//! 1. **Mark.** `gc/marks/<n>.json` lists the blobs that no record names and that are older than the grace period. From here
//!    on every writer sees them. There is one open round at a time.
//! 2. **Sweep**, once the grace period is over: the records are read again, and each candidate that still no record names
//!    is contested by creating `gc/fates/<n>/<digest>.json`. Whoever creates it decides: the sweeper writes `doomed` and then
//!    deletes; a writer that is about to rely on a marked blob writes `rescued` ([`Store::hold_blob`]), and it stays.
//!    `gc/sweeps/<n>.json` ends the round.
//!
//! Why nothing that is referred to is lost: a writer knows of every mark older than [`ROUND_MEMORY`]. If it looked at a blob
//! before it knew of the mark, it creates its record within the grace period, so the sweep's reading sees that record. If it
//! knew of the mark, it has won the contest, or it has lost and is told to come again once the round is over. A blob that is
//! doomed cannot be written again before the sweep has ended, so a slow deletion meets no new copy.
//!
//! A crash leaves an open round, which the next run goes on with: a mark waits, a fate stands, a deletion is repeated. Of
//! two sweepers one gives way: `gc/sweepers/<n>/<k>.json` says until when the round is somebody's, and no deletion begins
//! later than [`SWEEP_MARGIN`] before that.

mod hold;
mod references;
mod round;
mod sweep;

pub use sweep::Claim;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tailor_domain::Digest;

pub(crate) use hold::Rounds;

/// How long a process may go without looking for a new mark.
pub const ROUND_MEMORY: Duration = Duration::from_secs(30);
/// The shortest grace period: what a writer needs at most between looking at a blob and naming it, with a wide margin for
/// clocks that differ.
pub const MIN_GRACE: Duration = Duration::from_secs(600);
/// How long a round belongs to one sweeper.
pub const SWEEP_LEASE: Duration = Duration::from_secs(600);
/// Longer than any one request to a store may take.
pub const SWEEP_MARGIN: Duration = Duration::from_secs(120);

const MARKS: &str = "gc/marks";

/// A blob as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredAt {
    pub digest: Digest,
    pub size_bytes: u64,
    pub modified_at_ms: u64,
}

/// `gc/marks/<n>.json`: what may be swept once the grace period is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub at_ms: u64,
    pub grace_ms: u64,
    /// Sorted by digest.
    pub candidates: Vec<StoredAt>,
}

impl Mark {
    pub fn names(&self, digest: &Digest) -> bool {
        self.candidates.binary_search_by(|candidate| candidate.digest.cmp(digest)).is_ok()
    }

    /// When it may be swept.
    pub fn due_at_ms(&self) -> u64 {
        self.at_ms.saturating_add(self.grace_ms)
    }

    pub fn size_bytes(&self) -> u64 {
        self.candidates.iter().map(|candidate| candidate.size_bytes).sum()
    }
}

/// `gc/sweeps/<n>.json`: what a round came to. The round is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swept {
    pub at_ms: u64,
    pub deleted: u64,
    pub deleted_bytes: u64,
    /// Marked, and then named by a record or rescued by a writer.
    pub kept: u64,
}

/// `gc/fates/<n>/<digest>.json`: who won the contest for a marked blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Fate {
    Doomed,
    Rescued,
}

/// `gc/sweepers/<n>/<k>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Sweeper {
    id: String,
    until_ms: u64,
}

fn sweep_key(round: u64) -> String {
    crate::numbered_key("gc/sweeps", round)
}

fn fate_key(round: u64, digest: &Digest) -> String {
    format!("gc/fates/{round:08}/{}.json", digest.hex())
}

fn sweepers_prefix(round: u64) -> String {
    format!("gc/sweepers/{round:08}")
}
