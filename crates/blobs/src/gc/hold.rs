//! The writer's side: look at a blob so that no collection takes it afterwards.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tailor_domain::Digest;

use super::{Fate, MARKS, Mark, ROUND_MEMORY, fate_key, sweep_key};
use crate::blob::blob_key;
use crate::{Creation, Error, Result, Store, numbered_key};

/// A round that is not over.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub number: u64,
    pub mark: Arc<Mark>,
}

/// What this process knows of the open round, and since when.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rounds(Arc<Mutex<Option<Known>>>);

/// The open round, if there is one, and when that was asked.
type Known = (Instant, Option<Open>);

impl Rounds {
    fn fresh(&self) -> Option<Option<Open>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|(since, _)| since.elapsed() < ROUND_MEMORY).map(|(_, open)| open.clone())
    }

    fn learn(&self, asked_at: Instant, open: Option<Open>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((asked_at, open));
    }

    pub(crate) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Store {
    /// The blob's size if it is there, and then a promise: whoever creates a record that names the blob within
    /// [`super::MIN_GRACE`] finds it there. Every writer that relies on a blob it did not just write itself asks here.
    ///
    /// # Errors
    /// [`Error::Collecting`]: it is being deleted at this moment. [`Error::Unavailable`], [`Error::Refused`].
    pub async fn hold_blob(&self, digest: &Digest) -> Result<Option<u64>> {
        if let Some(Open { number, mark }) = self.known_round().await?
            && mark.names(digest)
        {
            match self.create_json(&fate_key(number, digest), &Fate::Rescued).await? {
                Creation::Created | Creation::AlreadyExists(Fate::Rescued) => {}
                // Over meanwhile? Then it is gone, or was written again since.
                Creation::AlreadyExists(Fate::Doomed) if self.exists(&sweep_key(number)).await? => self.rounds.forget(),
                Creation::AlreadyExists(Fate::Doomed) => return Err(Error::Collecting { digest: digest.clone() }),
            }
        }
        self.size(&blob_key(digest)).await
    }

    async fn known_round(&self) -> Result<Option<Open>> {
        if let Some(known) = self.rounds.fresh() {
            return Ok(known);
        }
        let asked_at = Instant::now();
        let open = self.open_round().await?;
        self.rounds.learn(asked_at, open.clone());
        Ok(open)
    }

    /// The round that is not over, read from the store.
    pub(crate) async fn open_round(&self) -> Result<Option<Open>> {
        let number = self.last_number(MARKS).await?;
        if number == 0 || self.exists(&sweep_key(number)).await? {
            return Ok(None);
        }
        let mark = self.get_json(&numbered_key(MARKS, number)).await?;
        Ok(Some(Open { number, mark: Arc::new(mark) }))
    }
}
