//! A version's trial: it is loaded and answers one prompt before any caller meets it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tailor_domain::rollout::Golden;
use tailor_pb::inference as pb;
use tailor_pb::registry;
use tailor_serverkit::Coded as _;
use tokio::sync::{Mutex, OnceCell};

use super::turn::is_the_versions_fault;
use crate::answer;
use crate::error::{Error, Result};
use crate::failures::Failures;
use crate::models::Models;

/// Tokens of a golden answer, and of an answer that nothing is demanded of.
const GOLDEN_TOKENS: u32 = 128;
const ANY_TOKENS: u32 = 1;
/// What a version is asked where the rollout has no golden prompt.
const ANY_INPUT: &str = "Hello";
/// Trials that are remembered; beyond it they are made again.
const MAX_TRIALS: usize = 1024;

/// How often a trial is made before a rollout is judged by it, and the wait after the first; then twice as long each time.
const TRIES: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// What follows a trial that failed ahead of any caller.
#[derive(Debug, PartialEq, Eq)]
pub enum After {
    /// What it failed by may pass.
    Again(Duration),
    /// The version is no good.
    Abort,
    /// Nothing is known of the version.
    Leave,
}

/// `tries`: how many have failed.
pub fn after(error: &Error, tries: u32) -> After {
    if error.code().retryable() && tries < TRIES {
        let wait = FIRST_WAIT * (1 << (tries.max(1) - 1));
        return After::Again(error.retry_after().map_or(wait, |asked| asked.clamp(wait, FIRST_WAIT * 60)));
    }
    if is_the_versions_fault(error) { After::Abort } else { After::Leave }
}

/// A digest and what it was asked.
type Key = (String, Option<Golden>);

/// Trials by digest: a version that has passed one is not tried again.
#[derive(Default)]
pub struct Trials {
    made: Mutex<HashMap<Key, Arc<OnceCell<()>>>>,
    failures: Failures<Key>,
}

impl Trials {
    /// Returns once the version has passed. Callers of the same trial share one, also where it fails; who comes after that tries
    /// again.
    ///
    /// # Errors
    /// It cannot be loaded or does not answer; [`Error::Golden`] where it answers otherwise than it must.
    pub async fn pass(
        &self,
        models: &Arc<Models>,
        version: &registry::AdapterVersion,
        golden: Option<&Golden>,
    ) -> Result<()> {
        let (arrived, key) = (Instant::now(), (version.digest.clone(), golden.cloned()));
        let trial = {
            let mut trials = self.made.lock().await;
            if trials.len() >= MAX_TRIALS {
                trials.clear();
            }
            trials.entry(key.clone()).or_default().clone()
        };
        let run = || self.failures.attempt(&key, arrived, run(models, version, golden));
        trial.get_or_try_init(run).await?;
        Ok(())
    }
}

async fn run(models: &Arc<Models>, version: &registry::AdapterVersion, golden: Option<&Golden>) -> Result<()> {
    let model = models.ready("", version).await?;
    let request = pb::GenerateRequest {
        input: golden.map_or(ANY_INPUT, |golden| &golden.input).to_owned(),
        max_new_tokens: if golden.is_some() { GOLDEN_TOKENS } else { ANY_TOKENS },
        ..Default::default()
    };
    let said = answer::unheard(&model, request.try_into()?).await?;
    let name = format!("{}@{}", version.adapter, version.version);
    match golden {
        Some(golden) if !golden.expect.is_empty() && golden.expect != said => {
            Err(Error::Golden { adapter: name, said, expect: golden.expect.clone() })
        }
        Some(_) | None => {
            tracing::info!(adapter = name, digest = version.digest, "passed its trial");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_waited_for_and_what_a_version_cannot_help_is_not_held_against_it() {
        let full = Error::TenantLimit {
            tenant: "a".into(),
            what: "requests",
            asked: 1,
            limit: 1,
            retry_after: Duration::from_secs(7),
        };
        assert_eq!(after(&full, 1), After::Again(Duration::from_secs(7)), "as long as was asked for");
        assert_eq!(after(&full, 5), After::Again(Duration::from_secs(16)), "but no less than it has been");
        assert_eq!(after(&full, TRIES), After::Leave, "a full queue says nothing of a version");
        assert_eq!(after(&Error::Stopping, 1), After::Again(FIRST_WAIT));
        assert_eq!(
            after(&Error::Stopping, TRIES),
            After::Abort,
            "what cannot be reached for a minute cannot be rolled out"
        );
        let large = Error::from(tailor_engine::Error::OutOfMemory("8 GiB".into()));
        assert_eq!(after(&large, 1), After::Again(FIRST_WAIT));
        assert_eq!(after(&large, TRIES), After::Abort, "nor what finds no room for as long");
        let wrong = Error::Golden { adapter: "a@2".into(), said: "no".into(), expect: "yes".into() };
        assert_eq!(after(&wrong, 1), After::Abort);
    }
}
