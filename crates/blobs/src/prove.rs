//! A promise is checked, not believed: some S3-compatible stores accept `If-None-Match` and let several writers win.

use futures::future::join_all;
use object_store::{PutMode, PutOptions, PutPayload};
use ulid::Ulid;

use crate::{Error, Result, Store};

const ROUNDS: usize = 3;
const RACERS: usize = 8;

impl Store {
    /// Races conditional puts on scratch keys and refuses the store if more than one of a round is told that it won, or
    /// if what is stored is not the winner's. Call it once at start; it also finds out whether the store answers.
    ///
    /// # Errors
    /// [`Error::Unfit`] if the promise is broken; [`Error::Unavailable`], [`Error::Refused`], [`Error::Full`].
    pub async fn prove_conditional_create(&self) -> Result<()> {
        for _ in 0..ROUNDS {
            let key = format!("probe/{}", Ulid::new().to_string().to_ascii_lowercase());
            let outcome = self.race(&key).await;
            if let Err(error) = self.delete(&key).await {
                tracing::warn!(%key, %error, "could not delete a scratch object; it is empty of meaning");
            }
            outcome?;
        }
        Ok(())
    }

    async fn race(&self, key: &str) -> Result<()> {
        let path = &self.path(key)?;
        let unfit = |problem: String| Error::Unfit { url: self.url().to_owned(), problem };
        let racers = (0..RACERS).map(|racer| async move {
            let body = format!("racer {racer}");
            let options = PutOptions::from(PutMode::Create);
            let put = self.backend.put_opts(path, PutPayload::from(body.clone().into_bytes()), options).await;
            (body, put.map_err(|error| self.error(key, error)))
        });
        let mut winners = Vec::new();
        let mut failure = None;
        for (body, put) in join_all(racers).await {
            match put {
                Ok(_) => winners.push(body),
                Err(Error::AlreadyExists { .. }) => {}
                Err(error) => failure = Some(error),
            }
        }
        match (winners.as_slice(), failure) {
            ([winner], _) => {
                let stored = self.get(key).await?;
                if stored == winner.as_bytes() {
                    return Ok(());
                }
                Err(unfit(format!("the object holds what a loser of {RACERS} racing creates wrote")))
            }
            ([], Some(error)) => Err(error),
            // The winner's answer was lost and its repetition lost against itself: one object, so the promise holds.
            ([], None) => self.get(key).await.map(drop),
            (many, _) => {
                let count = many.len();
                Err(unfit(format!("{count} of {RACERS} racing creates of one object were told that they won")))
            }
        }
    }
}
