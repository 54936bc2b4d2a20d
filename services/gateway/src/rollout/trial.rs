//! A version's trial: it is loaded and answers one prompt before any caller meets it.

use std::collections::HashMap;
use std::sync::Arc;

use tailor_domain::rollout::Golden;
use tailor_pb::inference as pb;
use tailor_pb::registry;
use tokio::sync::{Mutex, OnceCell};

use crate::answer;
use crate::error::{Error, Result};
use crate::models::Models;

/// Tokens of a golden answer, and of an answer that nothing is demanded of.
const GOLDEN_TOKENS: u32 = 128;
const ANY_TOKENS: u32 = 1;
/// What a version is asked where the rollout has no golden prompt.
const ANY_INPUT: &str = "Hello";
/// Trials that are remembered; beyond it they are made again.
const MAX_TRIALS: usize = 1024;

/// A digest and what it was asked.
type Key = (String, Option<Golden>);

/// Trials by digest: a version that has passed one is not tried again.
#[derive(Default)]
pub struct Trials(Mutex<HashMap<Key, Arc<OnceCell<()>>>>);

impl Trials {
    /// Returns once the version has passed. Callers of the same trial share one; a failed one may be tried again.
    ///
    /// # Errors
    /// It cannot be loaded or does not answer; [`Error::Golden`] where it answers otherwise than it must.
    pub async fn pass(
        &self,
        models: &Arc<Models>,
        version: &registry::AdapterVersion,
        golden: Option<&Golden>,
    ) -> Result<()> {
        let trial = {
            let mut trials = self.0.lock().await;
            if trials.len() >= MAX_TRIALS {
                trials.clear();
            }
            trials.entry((version.digest.clone(), golden.cloned())).or_default().clone()
        };
        trial.get_or_try_init(|| run(models, version, golden)).await?;
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
