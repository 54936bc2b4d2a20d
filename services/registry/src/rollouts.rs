//! Rollouts as records: a numbered log for each alias, each entry the whole state, the last the present. Gateways follow it
//! by the watch; nothing else has to be told, and a restart forgets nothing.

use tailor_blobs::numbered_key;
use tailor_domain::rollout::{Golden, Limits, Share, StickyBy};
use tailor_domain::{AdapterName, AliasMove, AliasName, Invalid, Rollout, RolloutState, Version};

use crate::aliases::{Expected, Gated, Reason};
use crate::changes::{Announced, Kind};
use crate::{Error, Registry, Result};

/// What is asked of a rollout; what is left out stays as it is, or is a new rollout's default.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub canary: Version,
    pub share: Share,
    pub shadow: Option<Share>,
    pub sticky_by: Option<StickyBy>,
    /// Given what they are, what they shall be.
    pub limits: tailor_pb::registry::RolloutLimits,
    pub golden: Option<Golden>,
    pub reason: Reason,
}

/// A rollout and the number of the alias' last move, which says whether it is still in force.
pub type Current = (Rollout, u64);

pub(crate) fn log_prefix(adapter: &AdapterName, alias: &AliasName) -> String {
    format!("adapters/{adapter}/rollouts/{alias}")
}

impl Registry {
    /// Begins a rollout, or changes the running one. The same twice is made once.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such alias or version. [`Error::Invalid`]: the alias points there already, or a limit is
    /// outside its bounds. [`Error::NotReady`]: another version's rollout runs. [`Error::Gates`]: the policy refuses it.
    pub async fn set_rollout(&self, adapter: &AdapterName, alias: &AliasName, wanted: Wanted) -> Result<Current> {
        let manifest = self.manifest(adapter, wanted.canary).await?;
        self.require_live(adapter, wanted.canary).await?;
        loop {
            let present = self.present(adapter, alias).await?;
            if present.to == wanted.canary {
                let problem = format!("alias {alias} points to version {} already", wanted.canary);
                return Err(Invalid::new("canary_version", problem).into());
            }
            let last = self.last_rollout(adapter, alias).await?;
            let running = last.as_ref().filter(|last| last.is_active(present.seq));
            if let Some(running) = running
                && (running.canary != wanted.canary || running.state == RolloutState::Promoting)
            {
                return Err(Error::NotReady {
                    what: format!(
                        "a rollout of version {} runs behind alias {alias} of adapter {adapter} ({})",
                        running.canary,
                        running.state.as_str()
                    ),
                    remedy: "promote or abort it first".into(),
                });
            }
            self.pass_gates(&manifest, alias, Some(present.to), &wanted.reason.who).await?;
            let next = self.next_entry(alias, &present, last.as_ref(), running, &wanted)?;
            if let Some(running) = running
                && is_same(running, &next)
            {
                return Ok((running.clone(), present.seq));
            }
            if self.append_rollout(adapter, &next).await? {
                return Ok((next, present.seq));
            }
            // Somebody changed it meanwhile: decide again by what it is now.
        }
    }

    fn next_entry(
        &self,
        alias: &AliasName,
        present: &AliasMove,
        last: Option<&Rollout>,
        running: Option<&Rollout>,
        wanted: &Wanted,
    ) -> Result<Rollout> {
        let seq = last.map_or(0, |last| last.seq) + 1;
        let as_is = running.map_or_else(Limits::default, |running| running.limits);
        Ok(Rollout {
            alias: alias.clone(),
            seq,
            id: running.map_or(seq, |running| running.id),
            state: RolloutState::Running,
            stable: present.to,
            alias_seq: present.seq,
            canary: wanted.canary,
            share: wanted.share,
            shadow: wanted.shadow.or(running.map(|running| running.shadow)).unwrap_or_default(),
            sticky_by: wanted.sticky_by.or(running.map(|running| running.sticky_by)).unwrap_or_default(),
            limits: tailor_pb::convert::limits(&wanted.limits, as_is)?,
            golden: wanted.golden.clone().or_else(|| running.and_then(|running| running.golden.clone())),
            who: wanted.reason.who.clone(),
            why: wanted.reason.why.clone(),
            at_ms: (self.clock)(),
        })
    }

    /// The alias' last rollout.
    ///
    /// # Errors
    /// [`Error::NotFound`]: it has had none.
    pub async fn rollout(&self, adapter: &AdapterName, alias: &AliasName) -> Result<Current> {
        let present = self.present(adapter, alias).await?;
        match self.last_rollout(adapter, alias).await? {
            Some(rollout) => Ok((rollout, present.seq)),
            None => Err(Error::NotFound {
                what: format!("alias {alias} of adapter {adapter} has had no rollout"),
                hint: "begin one (tailor rollout set)".into(),
            }),
        }
    }

    /// Ends a rollout: everybody is back on what the alias points to. `only` names the entry that is meant, where a newer
    /// one must not be ended.
    ///
    /// # Errors
    /// [`Error::NotFound`]: there was none. [`Error::NotReady`]: it is promoted, or on the way. [`Error::Superseded`]:
    /// `only` is not the last entry.
    pub async fn abort_rollout(
        &self,
        adapter: &AdapterName,
        alias: &AliasName,
        only: Option<u64>,
        reason: Reason,
    ) -> Result<Current> {
        loop {
            let (last, alias_seq) = self.rollout(adapter, alias).await?;
            match last.state {
                RolloutState::Aborted => return Ok((last, alias_seq)),
                RolloutState::Running => {}
                RolloutState::Promoting | RolloutState::Promoted => {
                    return Err(Error::NotReady {
                        what: format!("the rollout of version {} is {}", last.canary, last.state.as_str()),
                        remedy: "promote it again if that was broken off, then roll the alias back (tailor adapter rollback)"
                            .into(),
                    });
                }
            }
            if let Some(only) = only.filter(|only| *only != last.seq) {
                return Err(Error::Superseded {
                    what: format!(
                        "the rollout behind alias {alias} of adapter {adapter} is at {}, not {only}",
                        last.seq
                    ),
                    remedy: "look at it and decide again".into(),
                });
            }
            let next = self.entry_after(&last, RolloutState::Aborted, &reason);
            if self.append_rollout(adapter, &next).await? {
                return Ok((next, alias_seq));
            }
        }
    }

    /// Points the alias at the rollout's version. The log says first that the move is coming, so that an abort at the same
    /// moment comes before it or not at all; one that was broken off after that is completed by the next call.
    ///
    /// # Errors
    /// [`Error::NotFound`]: there was none. [`Error::NotReady`]: none runs. [`Error::Gates`]. [`Error::Superseded`]: the
    /// alias was moved by other means.
    pub async fn promote_rollout(&self, adapter: &AdapterName, alias: &AliasName, reason: Reason) -> Result<Current> {
        loop {
            let (last, alias_seq) = self.rollout(adapter, alias).await?;
            match last.state {
                RolloutState::Promoted => return Ok((last, alias_seq)),
                RolloutState::Running if last.is_active(alias_seq) => {
                    let manifest = self.manifest(adapter, last.canary).await?;
                    self.pass_gates(&manifest, alias, Some(last.stable), &reason.who).await?;
                    let next = self.entry_after(&last, RolloutState::Promoting, &reason);
                    // Whether it was made here or by another call at the same moment, the next turn goes on from it.
                    self.append_rollout(adapter, &next).await?;
                }
                RolloutState::Promoting => {
                    let moved = self.move_to_canary(adapter, alias, &last).await?;
                    let next = self.entry_after(&last, RolloutState::Promoted, &reason);
                    if self.append_rollout(adapter, &next).await? {
                        return Ok((next, moved.seq));
                    }
                }
                RolloutState::Running | RolloutState::Aborted => {
                    let state = if last.state == RolloutState::Running {
                        "over, for the alias was moved by other means"
                    } else {
                        "aborted"
                    };
                    return Err(Error::NotReady {
                        what: format!("the last rollout behind alias {alias} of adapter {adapter} is {state}"),
                        remedy: "begin another (tailor rollout set)".into(),
                    });
                }
            }
        }
    }

    /// The move of a promotion, made now or by a call that was broken off.
    async fn move_to_canary(&self, adapter: &AdapterName, alias: &AliasName, last: &Rollout) -> Result<AliasMove> {
        let present = self.present(adapter, alias).await?;
        if present.to == last.canary {
            return Ok(present);
        }
        let words = Reason { who: last.who.clone(), why: last.why.clone() };
        let expected = Expected::Version(last.stable);
        self.move_alias(adapter, alias, last.canary, expected, words, Gated::Before).await
    }

    fn entry_after(&self, last: &Rollout, state: RolloutState, reason: &Reason) -> Rollout {
        Rollout {
            seq: last.seq + 1,
            state,
            who: reason.who.clone(),
            why: reason.why.clone(),
            at_ms: (self.clock)(),
            ..last.clone()
        }
    }

    /// The alias' last move.
    async fn present(&self, adapter: &AdapterName, alias: &AliasName) -> Result<AliasMove> {
        match self.last_move(adapter, alias).await? {
            Some(last) => Ok(last),
            None => Err(self.no_alias(adapter, alias).await?),
        }
    }

    pub(crate) async fn last_rollout(&self, adapter: &AdapterName, alias: &AliasName) -> Result<Option<Rollout>> {
        let prefix = log_prefix(adapter, alias);
        match self.store.last_number(&prefix).await? {
            0 => Ok(None),
            last => Ok(Some(self.store.get_json(&numbered_key(&prefix, last)).await?)),
        }
    }

    /// Whether this call took the next number.
    async fn append_rollout(&self, adapter: &AdapterName, next: &Rollout) -> Result<bool> {
        let announced = Announced {
            kind: Kind::Rollout,
            adapter: adapter.clone(),
            alias: next.alias.clone(),
            seq: next.seq,
            at_ms: next.at_ms,
        };
        self.changes.announce(announced).await?;
        let key = numbered_key(&log_prefix(adapter, &next.alias), next.seq);
        let created = self.store.create_json(&key, next).await?.is_created();
        self.changes.made();
        if created {
            let (alias, state, percent) = (&next.alias, next.state.as_str(), next.share.percent());
            tracing::info!(%adapter, %alias, canary = next.canary.0, state, percent, who = %next.who, why = %next.why, "rollout");
            self.note("rollout", &next.who, &next.why, &key, next).await;
        }
        Ok(created)
    }
}

/// Whether an entry would say nothing new.
fn is_same(running: &Rollout, next: &Rollout) -> bool {
    *running == Rollout { seq: running.seq, at_ms: running.at_ms, ..next.clone() }
}
