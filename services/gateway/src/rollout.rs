//! Rollouts in this gateway: which side a caller is on, what both sides do, and the end that a rollout makes of itself.
//!
//! ```text
//! choose ──▶ routes  (what the alias means, and the rollout that splits its callers)
//!        ──▶ trial   (the canary is loaded and asked the golden prompt before its first caller)
//!        ──▶ Turn    (one request's side: told how it went; knows what to do when the canary fails)
//!              ├──▶ figures (the last requests of each side)  ──▶ guard (beyond a limit: abort, for all gateways)
//!              └──▶ shadow  (the canary answers what the stable version has answered, and is compared)
//! ```
//!
//! No caller pays for a canary: one that cannot be loaded, or fails before it has said anything, is stepped over, and the
//! stable version answers.

mod figures;
mod shadow;
mod trial;
mod turn;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tailor_domain::rollout::{BUCKETS, Caller, Golden, bucket};
use tailor_domain::{AdapterName, Digest, Rollout};
use tailor_pb::registry;
use tailor_serverkit::status::code_of;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use self::figures::{Figures, Seen, SeenSide};
use self::trial::After;
pub use self::turn::Turn;
use crate::error::{Error, Result};
use crate::models::{Model, Models};
use crate::routes::{Found, Route};

/// Rollouts that are remembered; beyond it those that are over are forgotten, figures and all.
const MAX_LIVE: usize = 1000;
/// Shadow answers at the same time; more are left out, so that they never crowd out callers.
const SHADOWS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Stable,
    Canary,
}

impl Side {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Canary => "canary",
        }
    }
}

/// A rollout as this gateway has seen it.
pub struct Live {
    pub adapter: AdapterName,
    /// The newest entry; replaced as the shares change.
    rollout: Mutex<Rollout>,
    stable: registry::AdapterVersion,
    canary: registry::AdapterVersion,
    pub figures: Mutex<Figures>,
    shadows: Arc<Semaphore>,
    /// Why this gateway has ended it, before the registry has said so to all.
    tripped: Mutex<Option<String>>,
    /// The entry by which both sides are being made ready.
    preparing: Mutex<Option<u64>>,
}

impl Live {
    pub fn rollout(&self) -> Rollout {
        self.rollout.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn seen(&self) -> Seen {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).seen()
    }

    fn is_tripped(&self) -> bool {
        self.tripped.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Whether nobody makes its sides ready by this entry yet; whoever is told so does.
    fn begin_preparing(&self, seq: u64) -> bool {
        let mut preparing = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        preparing.replace(seq) != Some(seq)
    }

    fn end_preparing(&self, seq: u64) {
        let mut preparing = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        if *preparing == Some(seq) {
            *preparing = None;
        }
    }
}

/// What a caller's reference comes to.
pub struct Choice {
    pub model: Model,
    /// While a rollout splits callers.
    pub turn: Option<Turn>,
}

impl Choice {
    pub fn side(&self) -> &'static str {
        self.turn.as_ref().map_or("", |turn| turn.side().as_str())
    }
}

pub struct Rollouts {
    models: Arc<Models>,
    live: Mutex<HashMap<(String, String), Arc<Live>>>,
    trials: trial::Trials,
    random: RandomState,
    requests: AtomicU64,
}

impl Rollouts {
    pub fn new(models: Arc<Models>) -> Self {
        let (random, requests) = (RandomState::new(), AtomicU64::new(0));
        Self { models, live: Mutex::default(), trials: trial::Trials::default(), random, requests }
    }

    pub fn models(&self) -> &Arc<Models> {
        &self.models
    }

    /// Finds what answers a caller and makes it ready. Either name may be empty, not both.
    pub async fn choose(self: &Arc<Self>, base: &str, adapter: &str, caller: &Caller) -> Result<Choice> {
        if adapter.is_empty() {
            return Ok(Choice { model: self.models.find(base, adapter).await?, turn: None });
        }
        let Found { route, .. } = self.models.routes().find(adapter).await?;
        let Some((side, live)) = self.side_of(&route, caller)? else {
            return Ok(Choice { model: self.models.ready(base, target(&route)?).await?, turn: None });
        };
        let turn = Turn::begin(self.clone(), live, side, base.to_owned());
        self.take(turn).await
    }

    /// The model of a turn's side; of the other one where the canary cannot be used.
    async fn take(self: &Arc<Self>, turn: Turn) -> Result<Choice> {
        let live = turn.live().clone();
        if turn.side() == Side::Canary {
            let ready = async {
                self.trials.pass(&self.models, &live.canary, live.rollout().golden.as_ref()).await?;
                self.models.ready(turn.base(), &live.canary).await
            };
            match ready.await {
                Ok(model) => return Ok(Choice { model, turn: Some(turn) }),
                Err(error) => match turn.failed(&error) {
                    Some(again) => {
                        let model = self.models.ready(again.base(), &live.stable).await?;
                        return Ok(Choice { model, turn: Some(again) });
                    }
                    None => return Err(error),
                },
            }
        }
        let model = self.models.ready(turn.base(), &live.stable).await?;
        Ok(Choice { model, turn: Some(turn) })
    }

    /// What a failed turn goes on with: the stable version, where it was the canary's fault.
    pub async fn instead(self: &Arc<Self>, turn: Turn, error: &Error) -> Result<Option<Choice>> {
        match turn.failed(error) {
            Some(again) => Ok(Some(self.take(again).await?)),
            None => Ok(None),
        }
    }

    /// The version that would answer, and its side.
    pub async fn route(
        &self,
        adapter: &str,
        caller: &Caller,
    ) -> Result<(registry::AdapterVersion, &'static str, bool)> {
        let Found { route, from_table } = self.models.routes().find(adapter).await?;
        Ok(match self.side_of(&route, caller)? {
            Some((Side::Canary, live)) => (live.canary.clone(), Side::Canary.as_str(), from_table),
            Some((Side::Stable, live)) => (live.stable.clone(), Side::Stable.as_str(), from_table),
            None => (target(&route)?.clone(), "", from_table),
        })
    }

    /// A caller's side, where a rollout is in force.
    fn side_of(&self, route: &Route, caller: &Caller) -> Result<Option<(Side, Arc<Live>)>> {
        let Some((rollout, stable, canary)) = route.split() else { return Ok(None) };
        let live = self.live(rollout, stable, canary)?;
        let place = match caller.key(rollout.sticky_by) {
            Some(key) => bucket(&rollout.salt(&live.adapter), &key),
            None => self.chance(),
        };
        let on_canary = rollout.share.holds(place) && !live.is_tripped();
        Ok(Some((if on_canary { Side::Canary } else { Side::Stable }, live)))
    }

    /// A bucket for a request that belongs to nobody.
    fn chance(&self) -> u16 {
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.requests.fetch_add(1, Ordering::Relaxed));
        (hasher.finish() % u64::from(BUCKETS)) as u16
    }

    /// What this gateway knows of a rollout; begun at the first sight of it.
    fn live(
        &self,
        rollout: &Rollout,
        stable: &registry::AdapterVersion,
        canary: &registry::AdapterVersion,
    ) -> Result<Arc<Live>> {
        let adapter = AdapterName::try_new(stable.adapter.clone())?;
        let key = (adapter.to_string(), rollout.alias.to_string());
        let mut all = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_LIVE && !all.contains_key(&key) {
            let table = self.models.routes().table();
            all.retain(|(adapter, alias), _| table.find(adapter, alias).is_some_and(|route| route.split().is_some()));
        }
        let slot = all.entry(key);
        let live = slot.or_insert_with(|| Arc::new(Live::new(adapter.clone(), rollout, stable, canary)));
        let known = live.rollout();
        if known.id != rollout.id {
            *live = Arc::new(Live::new(adapter, rollout, stable, canary));
        } else if known.seq < rollout.seq {
            *live.rollout.lock().unwrap_or_else(PoisonError::into_inner) = rollout.clone();
        }
        Ok(live.clone())
    }

    /// What this gateway has seen of a rollout.
    pub fn seen(&self, adapter: &str, alias: &str, id: u64) -> Option<Seen> {
        let all = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let live = all.get(&(adapter.to_owned(), alias.to_owned()))?;
        (live.rollout().id == id).then(|| live.seen())
    }

    /// Counts how good an answer was.
    pub fn report_quality(self: &Arc<Self>, digest: &str, score: f64) -> Result<()> {
        for (_, route) in self.models.routes().table().all() {
            let Some((rollout, stable, canary)) = route.split() else { continue };
            let side = match digest {
                digest if digest == canary.digest => Side::Canary,
                digest if digest == stable.digest => Side::Stable,
                _ => continue,
            };
            let live = self.live(rollout, stable, canary)?;
            live.figures.lock().unwrap_or_else(PoisonError::into_inner).side(side).quality(score);
            self.look_at(&live);
            return Ok(());
        }
        Err(Error::NotASide(digest.to_owned()))
    }

    /// As [`Table::holds`](crate::routes::Table::holds).
    pub fn holds(&self, digest: &Digest) -> Option<String> {
        self.models.routes().table().holds(digest)
    }

    /// Loads and tries the canaries of all rollouts as they appear, so that their first callers do not wait, and loads what
    /// they would fall back to; until `stop`.
    pub async fn attend(self: Arc<Self>, stop: CancellationToken) {
        let mut changed = self.models.routes().table().changed();
        loop {
            for (_, route) in self.models.routes().table().all() {
                let Some((rollout, stable, canary)) = route.split() else { continue };
                let Ok(live) = self.live(rollout, stable, canary) else { continue };
                let Rollout { seq, golden, .. } = live.rollout();
                // The table changes with each move of any alias; a trial that is made again and again is one all the same.
                if live.is_tripped() || !live.begin_preparing(seq) {
                    continue;
                }
                let rollouts = self.clone();
                let stop = stop.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = rollouts.prepare(&live, golden.as_ref()) => {}
                    }
                    live.end_preparing(seq);
                });
            }
            tokio::select! {
                () = stop.cancelled() => return,
                more = changed.changed() => if more.is_err() { return },
            }
        }
    }

    async fn prepare(self: &Arc<Self>, live: &Arc<Live>, golden: Option<&Golden>) {
        let way_back = async {
            let resident = async { self.models.ready("", &live.stable).await?.lease().await };
            if let Err(error) = resident.await {
                tracing::warn!(adapter = %live.adapter, %error, "the way back of a rollout cannot be loaded ahead of time");
            }
        };
        tokio::join!(self.try_canary(live, golden), way_back);
    }

    /// Gives the canary its trial ahead of its callers, again where it was not the canary that failed.
    async fn try_canary(self: &Arc<Self>, live: &Arc<Live>, golden: Option<&Golden>) {
        let mut tries = 0;
        while let Err(error) = self.trials.pass(&self.models, &live.canary, golden).await {
            tries += 1;
            match trial::after(&error, tries) {
                After::Abort => return self.trip(live, format!("it did not pass its trial: {error}")),
                After::Again(wait) if !live.is_tripped() => {
                    tracing::warn!(adapter = %live.adapter, %error, tries, ?wait, "a canary's trial is made again");
                    tokio::time::sleep(wait).await;
                }
                After::Again(_) | After::Leave => {
                    tracing::warn!(adapter = %live.adapter, %error, "a canary's trial is left to its first caller");
                    return;
                }
            }
        }
    }

    /// Tries a version before a rollout of it is begun.
    pub async fn try_out(&self, version: &registry::AdapterVersion, golden: Option<&Golden>) -> Result<()> {
        self.trials.pass(&self.models, version, golden).await
    }

    /// Ends a rollout whose canary is beyond a limit.
    fn look_at(self: &Arc<Self>, live: &Arc<Live>) {
        let limits = live.rollout().limits;
        let verdict = live.figures.lock().unwrap_or_else(PoisonError::into_inner).judge(&limits);
        if let Some(problem) = verdict {
            self.trip(live, problem);
        }
    }

    /// Sends everybody back, here at once and elsewhere as soon as the registry has it.
    fn trip(self: &Arc<Self>, live: &Arc<Live>, problem: String) {
        {
            let mut tripped = live.tripped.lock().unwrap_or_else(PoisonError::into_inner);
            if tripped.is_some() {
                return;
            }
            *tripped = Some(problem.clone());
        }
        let rollout = live.rollout();
        let (adapter, alias) = (live.adapter.to_string(), rollout.alias.to_string());
        tracing::warn!(adapter, alias, canary = rollout.canary.0, problem, "the rollout is aborted");
        let rollouts = self.clone();
        let live = live.clone();
        tokio::spawn(async move { rollouts.abort(&live, &problem).await });
    }

    /// Writes the end into the registry, for as long as it takes.
    async fn abort(&self, live: &Live, problem: &str) {
        const WAIT: Duration = Duration::from_millis(500);
        loop {
            let rollout = live.rollout();
            let request = registry::AbortRolloutRequest {
                adapter: live.adapter.to_string(),
                alias: rollout.alias.to_string(),
                who: "gateway".into(),
                why: format!("automatic: {problem}"),
                sequence: rollout.seq,
            };
            let routes = self.models.routes();
            let mut registry = routes.rollouts();
            match routes.answered(registry.abort_rollout(request)).await {
                Ok(_) => return,
                // The shares were changed meanwhile, or no registry answers: with the newer entry, or later.
                Err(status) if code_of(&status).retryable() => {
                    tokio::time::sleep(WAIT).await;
                    let now = self.models.routes().table().find(live.adapter.as_str(), rollout.alias.as_str());
                    match now.as_ref().and_then(|route| route.split()) {
                        Some((now, ..)) if now.id == rollout.id => {
                            *live.rollout.lock().unwrap_or_else(PoisonError::into_inner) = now.clone();
                        }
                        _ => return,
                    }
                }
                Err(status) => {
                    tracing::error!(problem = status.message(), "the rollout could not be aborted");
                    return;
                }
            }
        }
    }
}

impl Live {
    fn new(
        adapter: AdapterName,
        rollout: &Rollout,
        stable: &registry::AdapterVersion,
        canary: &registry::AdapterVersion,
    ) -> Self {
        Self {
            adapter,
            rollout: Mutex::new(rollout.clone()),
            stable: stable.clone(),
            canary: canary.clone(),
            figures: Mutex::default(),
            shadows: Arc::new(Semaphore::new(SHADOWS)),
            tripped: Mutex::default(),
            preparing: Mutex::default(),
        }
    }
}

fn target(route: &Route) -> Result<&registry::AdapterVersion> {
    let gone = || Error::service("registry")(tonic::Status::not_found("the alias' version was deleted"));
    route.target.as_ref().ok_or_else(gone)
}

#[cfg(test)]
mod tests;
