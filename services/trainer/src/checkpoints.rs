//! A job's checkpoints in the store: the bytes as a blob, then a record that names them. A checkpoint is there as a whole
//! or not at all, and its bytes are checked when they are read.
//!
//! It does not matter which attempt saved one: the run is the same to the bit, so even what a zombie saves late is true.
//! `jobs/<job>/checkpoints/<n>.json`

use std::fmt::Display;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use tailor_blobs::{Store, numbered_key};
use tailor_domain::{Digest, JobId};

use crate::error::Result;
use crate::journal::now_ms;

/// Checkpoints whose bytes are kept while a job is unfinished: should the newest be damaged, the one before it serves.
const KEPT: usize = 2;
/// Records looked at: those before them lost their bytes long ago.
const RECENT: u64 = 16;
/// Records that are looked up together for a listing.
const AT_ONCE: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub fence: u64,
    pub step: u64,
    pub digest: Digest,
    pub size_bytes: u64,
    pub at_ms: u64,
}

/// A checkpoint as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Of the job's, from 1.
    pub number: u64,
    pub record: Record,
    /// Whether its bytes are there.
    pub kept: bool,
}

#[derive(Debug, Clone)]
pub struct Checkpoints {
    store: Store,
    job: JobId,
}

impl Checkpoints {
    pub fn of(store: &Store, job: &JobId) -> Self {
        Self { store: store.clone(), job: job.clone() }
    }

    fn prefix(&self) -> String {
        format!("jobs/{}/checkpoints", self.job)
    }

    /// Saves one, then lets go of the bytes of those that are not needed any more.
    pub async fn save(&self, fence: u64, step: u64, bytes: Vec<u8>) -> Result<()> {
        let size_bytes = bytes.len() as u64;
        let digest = self.store.put_blob(bytes).await?;
        let record = Record { fence, step, digest, size_bytes, at_ms: now_ms() };
        self.store.append_numbered(&self.prefix(), |_| record.clone()).await?;
        self.keep(KEPT).await
    }

    /// The furthest one that is whole and that `read` can read.
    pub async fn newest<T, E: Display>(&self, read: impl Fn(&[u8]) -> Result<T, E>) -> Result<Option<(Record, T)>> {
        for record in self.recent().await? {
            let bytes = match self.store.get_blob(&record.digest).await {
                Ok(bytes) => bytes,
                Err(error) if error.retryable() => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(job = %self.job, step = record.step, %error, "checkpoint left aside");
                    continue;
                }
            };
            match read(&bytes) {
                Ok(checkpoint) => return Ok(Some((record, checkpoint))),
                Err(error) => tracing::warn!(job = %self.job, step = record.step, %error, "checkpoint left aside"),
            }
        }
        Ok(None)
    }

    /// The attempt that got furthest; 0 where none got anywhere.
    pub async fn furthest_attempt(&self) -> Result<u64> {
        Ok(self.recent().await?.first().map_or(0, |record| record.fence))
    }

    /// At most `size` of all that were saved, newest first, and where the next page begins: before the number `before`.
    pub async fn list(&self, size: u64, before: Option<u64>) -> Result<(Vec<Saved>, Option<u64>)> {
        let last = self.store.last_number(&self.prefix()).await?;
        let end = before.unwrap_or(u64::MAX).min(last + 1);
        let first = end.saturating_sub(size).max(1);
        let looked_up = stream::iter((first..end).rev()).map(|number| self.saved(number)).buffered(AT_ONCE);
        Ok((looked_up.try_collect().await?, Some(first).filter(|first| *first > 1)))
    }

    async fn saved(&self, number: u64) -> Result<Saved> {
        let record: Record = self.store.get_json(&numbered_key(&self.prefix(), number)).await?;
        let kept = self.store.blob_size(&record.digest).await?.is_some();
        Ok(Saved { number, record, kept })
    }

    /// The job is finished: nobody goes on from here.
    pub async fn remove(&self) -> Result<()> {
        self.keep(0).await
    }

    /// The latest records, the furthest step first; of one step the first that saved it.
    async fn recent(&self) -> Result<Vec<Record>> {
        let last = self.store.last_number(&self.prefix()).await?;
        if last == 0 {
            return Ok(Vec::new());
        }
        let from = last.saturating_sub(RECENT) + 1;
        let numbered = self.store.read_numbered::<Record>(&self.prefix(), from).await?;
        let mut records: Vec<Record> = numbered.into_iter().map(|(_, record)| record).collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.step));
        Ok(records)
    }

    async fn keep(&self, count: usize) -> Result<()> {
        let records = self.recent().await?;
        let kept: Vec<&Digest> = records.iter().take(count).map(|record| &record.digest).collect();
        for record in records.iter().filter(|record| !kept.contains(&&record.digest)) {
            self.store.delete_blob(&record.digest).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoints() -> (Store, Checkpoints) {
        let store = Store::memory();
        let checkpoints = Checkpoints::of(&store, &JobId::from_parts(1_700_000_000_000, 7));
        (store, checkpoints)
    }

    fn bytes(step: u64) -> Vec<u8> {
        step.to_string().into_bytes()
    }

    fn step(bytes: &[u8]) -> Result<u64, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        text.parse().map_err(|_| format!("{text} is no number"))
    }

    #[tokio::test]
    async fn the_furthest_is_found_whoever_saved_it_and_older_bytes_go() {
        let (store, checkpoints) = checkpoints();
        assert_eq!(checkpoints.newest(step).await.expect("none"), None);
        for (fence, step) in [(1, 5), (1, 10), (2, 15), (1, 12)] {
            checkpoints.save(fence, step, bytes(step)).await.expect("saved");
        }
        let (record, checkpoint) = checkpoints.newest(step).await.expect("read").expect("one");
        assert_eq!((record.fence, record.step, checkpoint), (2, 15, 15));
        assert_eq!(checkpoints.furthest_attempt().await.expect("read"), 2);
        for (saved, there) in [(5, false), (10, false), (12, true), (15, true)] {
            let size = store.blob_size(&Digest::of(&bytes(saved))).await.expect("asked");
            assert_eq!(size.is_some(), there, "step {saved}");
        }
        checkpoints.remove().await.expect("removed");
        assert_eq!(checkpoints.newest(step).await.expect("read"), None, "no bytes are left");
    }

    #[tokio::test]
    async fn they_are_listed_newest_first_with_what_is_left_of_them() {
        let (_, checkpoints) = checkpoints();
        assert_eq!(checkpoints.list(10, None).await.expect("none"), (Vec::new(), None));
        for step in [5, 10, 15, 20, 25] {
            checkpoints.save(1, step, bytes(step)).await.expect("saved");
        }
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let (page, next) = checkpoints.list(2, before).await.expect("listed");
            assert!((1..=2).contains(&page.len()));
            seen.extend(page.into_iter().map(|saved| (saved.number, saved.record.step, saved.kept)));
            before = next;
            if before.is_none() {
                break;
            }
        }
        assert_eq!(seen, [(5, 25, true), (4, 20, true), (3, 15, false), (2, 10, false), (1, 5, false)]);
        assert_eq!(checkpoints.list(5, None).await.expect("all").1, None, "a page that is just full is the last");
        assert_eq!(checkpoints.list(5, Some(1)).await.expect("none"), (Vec::new(), None));
    }

    #[tokio::test]
    async fn a_damaged_checkpoint_gives_way_to_the_one_before_it() {
        let (store, checkpoints) = checkpoints();
        checkpoints.save(1, 5, bytes(5)).await.expect("saved");
        checkpoints.save(1, 10, b"no checkpoint".to_vec()).await.expect("saved");
        let (record, _) = checkpoints.newest(step).await.expect("read").expect("the one before");
        assert_eq!(record.step, 5);
        store.delete_blob(&record.digest).await.expect("lost");
        assert_eq!(checkpoints.newest(step).await.expect("read"), None);
    }
}
