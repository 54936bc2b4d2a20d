//! One request's turn in a rollout: which side it is on, and what follows from how it went.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use tailor_domain::ErrorCode;
use tailor_serverkit::Coded as _;

use super::{Live, Rollouts, Side};
use crate::error::{Error, Result};
use crate::models::Model;

pub struct Turn {
    rollouts: Arc<Rollouts>,
    live: Arc<Live>,
    side: Side,
    /// The base that the caller named, if it named one.
    base: String,
    begun: Instant,
}

impl Turn {
    pub(super) fn begin(rollouts: Arc<Rollouts>, live: Arc<Live>, side: Side, base: String) -> Self {
        Self { rollouts, live, side, base, begun: Instant::now() }
    }

    pub fn side(&self) -> Side {
        self.side
    }

    pub(super) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// The whole answer is out; `text` is what the caller got. Where the rollout has a shadow, the canary may now answer
    /// too, by `again`, without anybody waiting for it.
    pub fn answered<F>(self, text: String, again: impl FnOnce(Model) -> F + Send + 'static)
    where
        F: Future<Output = Result<String>> + Send + 'static,
    {
        self.scored();
        if self.side == Side::Stable {
            let bucket = self.rollouts.chance();
            if self.live.rollout().shadow.holds(bucket) && !self.live.is_tripped() {
                super::shadow::answer(self.rollouts, self.live, self.base, text, again);
            }
        }
    }

    /// An answer that has no shadow.
    pub fn scored(&self) {
        let mut figures = self.live.figures.lock().unwrap_or_else(PoisonError::into_inner);
        figures.side(self.side).answered(self.begun.elapsed());
        drop(figures);
        self.rollouts.look_at(&self.live);
    }

    /// It failed. Where that is the canary's own fault, the stable version's turn begins.
    pub fn failed(self, error: &Error) -> Option<Self> {
        if !is_the_versions_fault(error) {
            return None;
        }
        self.live.figures.lock().unwrap_or_else(PoisonError::into_inner).side(self.side).failed();
        tracing::warn!(adapter = %self.live.adapter, side = self.side.as_str(), %error, "a side of a rollout failed");
        self.rollouts.look_at(&self.live);
        (self.side == Side::Canary).then(|| Self { side: Side::Stable, begun: Instant::now(), ..self })
    }
}

/// Whether another version might have answered: not where the request is wrong, the caller gone, or the queue full.
pub(super) fn is_the_versions_fault(error: &Error) -> bool {
    match error.code() {
        // The queue is one for all versions. What does not fit beside what is there cannot be loaded, and another may be there.
        ErrorCode::ResourceExhausted => error.lacks_memory(),
        ErrorCode::NotFound
        | ErrorCode::FailedPrecondition
        | ErrorCode::Unavailable
        | ErrorCode::DataLoss
        | ErrorCode::Internal => !matches!(error, Error::OtherBase { .. }),
        ErrorCode::InvalidArgument
        | ErrorCode::AlreadyExists
        | ErrorCode::Aborted
        | ErrorCode::Unauthenticated
        | ErrorCode::PermissionDenied
        | ErrorCode::Cancelled
        | ErrorCode::DeadlineExceeded => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tailor_serverkit::status;

    use super::*;

    #[test]
    fn what_does_not_fit_is_stepped_over_also_where_an_engine_elsewhere_says_so_and_a_full_queue_is_not() {
        let full = || {
            let base = "other".parse().expect("a name");
            Error::NoRoomForBase { base, needed: 2, limit_bytes: 1, beside: "nothing".into() }
        };
        let out_of_memory = || Error::from(tailor_engine::Error::OutOfMemory("8 GiB".into()));
        let queue = || {
            let retry_after = Duration::from_secs(1);
            Error::from(tailor_engine::Error::QueueFull { waiting: 9, limit: 9, retry_after })
        };
        let elsewhere = |error: Error| Error::service("engine")(status(&error));
        for error in [full(), out_of_memory(), elsewhere(full()), elsewhere(out_of_memory())] {
            assert_eq!(error.code(), ErrorCode::ResourceExhausted);
            assert!(is_the_versions_fault(&error), "{error}");
        }
        for error in [queue(), elsewhere(queue())] {
            assert!(!is_the_versions_fault(&error), "{error}");
        }
    }
}
