//! Attempts that many wait for, one at a time: whoever has waited for one that failed is told so, and makes none of its own. Else
//! each would make it again after all before it, and the last would wait for as many as there are.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tailor_domain::ErrorCode;
use tailor_serverkit::Coded as _;

use crate::error::{Error, Result};

/// Whoever has waited looks at once when the attempt has ended. A failure that is forgotten before costs one more attempt.
const REMEMBERED: Duration = Duration::from_secs(10);

/// The last failure of each attempt, by what it is an attempt at.
pub struct Failures<K>(Mutex<HashMap<K, Failed>>);

struct Failed {
    at: Instant,
    told: Told,
}

/// An error as those hear of it who have waited for somebody else's attempt.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Told {
    message: String,
    pub code: ErrorCode,
    pub retry_after: Option<Duration>,
    pub lacks_memory: bool,
}

impl From<&Error> for Told {
    fn from(error: &Error) -> Self {
        let (retry_after, lacks_memory) = (error.retry_after(), error.lacks_memory());
        Self { message: error.to_string(), code: error.code(), retry_after, lacks_memory }
    }
}

impl<K> Default for Failures<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> Failures<K> {
    /// Makes an attempt whose turn has come, unless one before it has failed since its maker `arrived`.
    ///
    /// # Errors
    /// What the attempt says; [`Error::Told`] with what the one before it said.
    pub async fn attempt<T>(&self, key: &K, arrived: Instant, attempt: impl Future<Output = Result<T>>) -> Result<T> {
        if let Some(told) = self.since(key, arrived) {
            return Err(told.into());
        }
        let done = attempt.await;
        if let Err(error) = &done {
            self.note(key, error);
        }
        done
    }

    fn since(&self, key: &K, arrived: Instant) -> Option<Told> {
        self.lock().get(key).filter(|failed| failed.at >= arrived).map(|failed| failed.told.clone())
    }

    fn note(&self, key: &K, error: &Error) {
        let (mut all, now) = (self.lock(), Instant::now());
        all.retain(|_, failed| now.saturating_duration_since(failed.at) < REMEMBERED);
        all.insert(key.clone(), Failed { at: now, told: error.into() });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Failed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_waited_is_told_and_who_comes_later_tries() {
        let failures = Failures::default();
        let before = Instant::now();
        let full = || Error::from(tailor_engine::Error::OutOfMemory("8 GiB".into()));
        let first: Result<u32> = failures.attempt(&"a", before, async { Err(full()) }).await;
        let first = first.expect_err("there is no room");
        let waited: Result<u32> = failures.attempt(&"a", before, async { Ok(9) }).await;
        let told = waited.expect_err("it has waited for the first");
        assert_eq!((told.to_string(), told.code()), (first.to_string(), first.code()));
        assert!(told.lacks_memory());
        let other = failures.attempt(&"b", before, async { Ok(1) }).await;
        assert_eq!(other.expect("another matter"), 1);
        tokio::time::sleep(Duration::from_millis(2)).await;
        let later = failures.attempt(&"a", Instant::now(), async { Ok(2) }).await;
        assert_eq!(later.expect("there is room by now"), 2);
    }
}
