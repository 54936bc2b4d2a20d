//! The second phase: the contest for each candidate, the deletions, the end of the round.

use std::collections::HashSet;

use tailor_domain::Digest;
use ulid::Ulid;

use super::{Fate, Mark, SWEEP_LEASE, SWEEP_MARGIN, Sweeper, Swept, fate_key, sweep_key, sweepers_prefix};
use crate::{Creation, Error, Result, Store, numbered_key};

impl Store {
    /// Makes the round this caller's, for [`SWEEP_LEASE`]. To be called before the references are read.
    ///
    /// # Errors
    /// [`Error::Busy`]: another sweeper has it. As [`Store::create_json`].
    pub async fn claim_round(&self, round: u64, now_ms: u64) -> Result<Claim> {
        let prefix = sweepers_prefix(round);
        let last = self.last_number(&prefix).await?;
        if last > 0 {
            let holder: Sweeper = self.get_json(&numbered_key(&prefix, last)).await?;
            if now_ms < holder.until_ms {
                return Err(busy(round, holder.until_ms));
            }
        }
        let until_ms = now_ms + SWEEP_LEASE.as_millis() as u64;
        let claim = Sweeper { id: Ulid::new().to_string(), until_ms };
        match self.create_json(&numbered_key(&prefix, last + 1), &claim).await? {
            Creation::Created => Ok(Claim { round, number: last + 1, until_ms }),
            Creation::AlreadyExists(other) => Err(busy(round, other.until_ms)),
        }
    }

    /// Deletes what of the mark is not in `live`, which must have been read after the grace period was over, and ends the
    /// round. May be called again after any error.
    ///
    /// # Errors
    /// [`Error::Busy`]: the claim ran out before the end; the next run goes on. As [`Store::delete`].
    pub async fn sweep(
        &self,
        claim: &Claim,
        mark: &Mark,
        live: &HashSet<Digest>,
        now_ms: &(dyn Fn() -> u64 + Send + Sync),
    ) -> Result<Swept> {
        let round = claim.round;
        let mut swept = Swept { at_ms: 0, deleted: 0, deleted_bytes: 0, kept: 0 };
        for candidate in &mark.candidates {
            let doomed = !live.contains(&candidate.digest) && self.doom(round, &candidate.digest).await?;
            if !doomed {
                swept.kept += 1;
                continue;
            }
            if now_ms() + SWEEP_MARGIN.as_millis() as u64 > claim.until_ms {
                return Err(busy(round, claim.until_ms));
            }
            self.delete_blob(&candidate.digest).await?;
            swept.deleted += 1;
            swept.deleted_bytes += candidate.size_bytes;
        }
        swept.at_ms = now_ms();
        let swept = match self.create_json(&sweep_key(round), &swept).await? {
            Creation::Created => swept,
            Creation::AlreadyExists(earlier) => earlier,
        };
        self.rounds.forget();
        self.clear_rounds_up_to(round).await;
        self.delete_claim(claim).await;
        Ok(swept)
    }

    /// Whether the sweeper has won this blob, now or before.
    async fn doom(&self, round: u64, digest: &Digest) -> Result<bool> {
        Ok(match self.create_json(&fate_key(round, digest), &Fate::Doomed).await? {
            Creation::Created | Creation::AlreadyExists(Fate::Doomed) => true,
            Creation::AlreadyExists(Fate::Rescued) => false,
        })
    }

    /// Fates of rounds that are over mean nothing. Best effort: what is left goes with the next round.
    async fn clear_rounds_up_to(&self, round: u64) {
        for folder in ["gc/fates", "gc/sweepers"] {
            let Ok(keys) = self.list(folder).await else { continue };
            // The claim of this round goes last: until then nobody else begins to clear.
            let over = |key: &&String| {
                let number = key.strip_prefix(folder).and_then(|rest| rest.get(1..9)?.parse::<u64>().ok());
                number.is_some_and(|number| number < round || (number == round && folder == "gc/fates"))
            };
            for key in keys.iter().filter(over) {
                if let Err(error) = self.delete(key).await {
                    tracing::warn!(%key, %error, "could not clear up after a collection; the next one will");
                    return;
                }
            }
        }
    }

    async fn delete_claim(&self, claim: &Claim) {
        let key = numbered_key(&sweepers_prefix(claim.round), claim.number);
        if let Err(error) = self.delete(&key).await {
            tracing::warn!(%key, %error, "could not clear up after a collection; the next one will");
        }
    }
}

/// A round that is this caller's for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    round: u64,
    number: u64,
    until_ms: u64,
}

fn busy(round: u64, until_ms: u64) -> Error {
    Error::Busy { what: format!("round {round} of the collection"), until_ms }
}
