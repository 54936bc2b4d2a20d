//! Shadow traffic: the canary answers what the stable version has answered, is compared with it, and is not heard.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use tailor_serverkit::Coded as _;
use tailor_text::metrics::edit_distance;
use tracing::Instrument as _;

use super::turn::is_the_versions_fault;
use super::{Live, Rollouts, Side};
use crate::error::{Error, Result};
use crate::models::Model;

/// Starts the canary's answer beside everything else, or leaves it out where too many are on their way.
pub fn answer<F>(
    rollouts: Arc<Rollouts>,
    live: Arc<Live>,
    base: String,
    given: String,
    again: impl FnOnce(Model) -> F + Send + 'static,
) where
    F: Future<Output = Result<String>> + Send + 'static,
{
    let Ok(place) = live.shadows.clone().try_acquire_owned() else {
        live.figures.lock().unwrap_or_else(PoisonError::into_inner).skipped();
        return;
    };
    // In the trace of the request that it shadows, beside the answer that was heard.
    let span = tracing::info_span!("gateway.shadow", tailor.digest = live.canary.digest.as_str());
    let shadow = async move {
        let _place = place;
        let begun = Instant::now();
        let said = async {
            rollouts.trials.pass(&rollouts.models, &live.canary, live.rollout().golden.as_ref()).await?;
            again(rollouts.models.ready(&base, &live.canary).await?).await
        };
        let said = said.await;
        let took = begun.elapsed();
        let apart = match &said {
            Ok(said) => {
                let said = said.clone();
                tokio::task::spawn_blocking(move || distance(&given, &said)).await.ok()
            }
            Err(_) => None,
        };
        count(&live, said.err().as_ref(), took, apart);
        rollouts.look_at(&live);
    };
    tokio::spawn(shadow.instrument(span));
}

/// A shadow's request is one of the canary's like any other.
fn count(live: &Live, error: Option<&Error>, took: std::time::Duration, apart: Option<f64>) {
    let mut figures = live.figures.lock().unwrap_or_else(PoisonError::into_inner);
    match error {
        None => figures.side(Side::Canary).answered(took),
        Some(error) if is_the_versions_fault(error) && !error.lacks_memory() => {
            figures.shadow_failed();
            figures.side(Side::Canary).failed();
        }
        // No room: callers go first.
        Some(_) => figures.skipped(),
    }
    if let Some(apart) = apart {
        figures.compared(apart);
    }
}

/// 0: the same; 1: nothing in common.
fn distance(left: &str, right: &str) -> f64 {
    let longer = left.chars().count().max(right.chars().count());
    if longer == 0 { 0.0 } else { edit_distance(left, right) as f64 / longer as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_the_share_that_must_be_changed() {
        assert_eq!(distance("", ""), 0.0);
        assert_eq!(distance("abcd", "abcd"), 0.0);
        assert_eq!(distance("abcd", "abce"), 0.25);
        assert_eq!(distance("", "abcd"), 1.0);
        assert_eq!(distance("ab", "cdef"), 1.0);
    }
}
