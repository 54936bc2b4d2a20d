//! The first phase: what there is, and the mark.

use futures::TryStreamExt as _;
use tailor_domain::Digest;

use super::{MARKS, Mark, StoredAt, Swept, sweep_key};
use crate::{Creation, Result, Store, numbered_key};

const BLOBS: &str = "blobs/sha256";

impl Store {
    /// Every blob, sorted by digest.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`].
    pub async fn list_blobs(&self) -> Result<Vec<StoredAt>> {
        let path = self.path(BLOBS)?;
        let listed = self.backend.list(Some(&path)).try_filter_map(|meta| {
            let digest = meta.location.filename().and_then(|hex| Digest::try_new(hex).ok());
            let modified_at_ms = meta.last_modified.timestamp_millis().max(0) as u64;
            let entry = digest.map(|digest| StoredAt { digest, size_bytes: meta.size, modified_at_ms });
            std::future::ready(Ok(entry))
        });
        let mut blobs: Vec<StoredAt> = listed.try_collect().await.map_err(|error| self.error(BLOBS, error))?;
        blobs.sort_unstable_by(|a, b| a.digest.cmp(&b.digest));
        Ok(blobs)
    }

    /// The mark that waits to be swept, with its round's number.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`].
    pub async fn waiting_mark(&self) -> Result<Option<(u64, Mark)>> {
        Ok(self.open_round().await?.map(|open| (open.number, Mark::clone(&open.mark))))
    }

    /// Opens a round with a mark. `None`: somebody else opened one at the same moment, or an earlier one is not over.
    ///
    /// # Errors
    /// As [`Store::create_json`].
    pub async fn open_with(&self, mark: &Mark) -> Result<Option<u64>> {
        let last = self.last_number(MARKS).await?;
        if last > 0 && !self.exists(&sweep_key(last)).await? {
            return Ok(None);
        }
        match self.create_json(&numbered_key(MARKS, last + 1), mark).await? {
            Creation::Created => Ok(Some(last + 1)),
            Creation::AlreadyExists(_) => Ok(None),
        }
    }

    /// What a round came to; `None` while it is open.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`].
    pub async fn swept(&self, round: u64) -> Result<Option<Swept>> {
        self.find_json(&sweep_key(round)).await
    }
}
