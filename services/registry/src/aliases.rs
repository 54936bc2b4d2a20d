//! Aliases: each is a numbered log of moves. The last move is the present, the log is the history, and the next number is
//! taken by create-if-absent, so of two racing moves one is told that it lost. A rollback is a move like any other.

use std::collections::BTreeMap;

use futures::{StreamExt as _, TryStreamExt as _};
use tailor_blobs::numbered_key;
use tailor_domain::{AdapterName, AliasMove, AliasName, Invalid, Version};
use tailor_serverkit::hint::one_of;

use crate::changes::{Announced, Kind};
use crate::{Error, Registry, Result};

const READS_AT_ONCE: usize = 16;
const MAX_WORDS_BYTES: usize = 4096;

/// Who moves an alias, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    pub who: String,
    pub why: String,
}

impl Reason {
    /// # Errors
    /// Either is longer than anybody reads.
    pub fn try_new(who: String, why: String) -> Result<Self, Invalid> {
        for (field, words) in [("who", &who), ("why", &why)] {
            if words.len() > MAX_WORDS_BYTES {
                return Err(Invalid::new(field, format!("{} bytes; the limit is {MAX_WORDS_BYTES}", words.len())));
            }
        }
        Ok(Self { who, why })
    }
}

/// What the caller believes an alias to point to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Whatever it is: the last writer wins.
    Anything,
    /// It does not exist yet.
    Absent,
    Version(Version),
}

/// Whether a move has to pass the alias' policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gated {
    Yes,
    /// It has passed before it was announced that it would be made.
    Before,
}

pub(crate) fn aliases_prefix(adapter: &AdapterName) -> String {
    format!("adapters/{adapter}/aliases")
}

pub(crate) fn log_prefix(adapter: &AdapterName, alias: &AliasName) -> String {
    format!("{}/{alias}", aliases_prefix(adapter))
}

impl Registry {
    /// Points an alias at a version. A move that is asked for twice, because its first answer was lost, is made once.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such version. [`Error::Superseded`]: the alias points elsewhere than expected.
    /// [`Error::Gates`]: the alias' policy refuses the version.
    pub async fn set_alias(
        &self,
        adapter: &AdapterName,
        alias: &AliasName,
        version: Version,
        expected: Expected,
        reason: Reason,
    ) -> Result<AliasMove> {
        self.move_alias(adapter, alias, version, expected, reason, Gated::Yes).await
    }

    pub(crate) async fn move_alias(
        &self,
        adapter: &AdapterName,
        alias: &AliasName,
        version: Version,
        expected: Expected,
        reason: Reason,
        gated: Gated,
    ) -> Result<AliasMove> {
        if alias.as_str().bytes().all(|byte| byte.is_ascii_digit()) {
            let problem = format!("{alias} would read as a version number in {adapter}@{alias}; use a word");
            return Err(Invalid::new("alias", problem).into());
        }
        let manifest = self.manifest(adapter, version).await?;
        loop {
            let last = self.last_move(adapter, alias).await?;
            let points_to = last.as_ref().map(|last| last.to);
            let as_expected = match expected {
                Expected::Anything => true,
                Expected::Absent => points_to.is_none(),
                Expected::Version(version) => points_to == Some(version),
            };
            if let Some(done) = last.as_ref().filter(|last| is_this_move(last, version, expected, &reason)) {
                return Ok(done.clone());
            }
            if !as_expected {
                return Err(moved(adapter, alias, points_to, expected));
            }
            if gated == Gated::Yes {
                self.pass_gates(&manifest, alias, points_to, &reason.who).await?;
            }
            let next = AliasMove {
                alias: alias.clone(),
                seq: last.map_or(0, |last| last.seq) + 1,
                from: points_to,
                to: version,
                who: reason.who.clone(),
                why: reason.why.clone(),
                at_ms: (self.clock)(),
                rollback: false,
            };
            if self.append(adapter, &next).await? {
                return Ok(next);
            }
            // Somebody moved it meanwhile: look at what it is now and decide by the same rule.
        }
    }

    /// Undoes the last move, whatever it was: a second rollback undoes the first. No gate stands in its way.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such alias. [`Error::NotReady`]: it has had one target only. [`Error::Superseded`]:
    /// somebody moved it at the same moment, so there is another last move now.
    pub async fn rollback(&self, adapter: &AdapterName, alias: &AliasName, reason: Reason) -> Result<AliasMove> {
        let last = match self.last_move(adapter, alias).await? {
            Some(last) => last,
            None => return Err(self.no_alias(adapter, alias).await?),
        };
        let Some(before) = last.from else {
            return Err(Error::NotReady {
                what: format!("alias {alias} of adapter {adapter} has pointed to version {} only", last.to),
                remedy: "there is nothing to roll back to; point it elsewhere (set-alias)".into(),
            });
        };
        let next = AliasMove {
            alias: alias.clone(),
            seq: last.seq + 1,
            from: Some(last.to),
            to: before,
            who: reason.who,
            why: reason.why,
            at_ms: (self.clock)(),
            rollback: true,
        };
        if self.append(adapter, &next).await? {
            return Ok(next);
        }
        Err(Error::Superseded {
            what: format!("alias {alias} of adapter {adapter} was moved by somebody else at the same moment"),
            remedy: "read its history and decide again".into(),
        })
    }

    /// Every move of an alias, newest first.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn alias_history(&self, adapter: &AdapterName, alias: &AliasName) -> Result<Vec<AliasMove>> {
        let moves: Vec<(u64, AliasMove)> = self.store.read_numbered(&log_prefix(adapter, alias), 1).await?;
        if moves.is_empty() {
            return Err(self.no_alias(adapter, alias).await?);
        }
        Ok(moves.into_iter().rev().map(|(_, entry)| entry).collect())
    }

    pub(crate) async fn last_move(&self, adapter: &AdapterName, alias: &AliasName) -> Result<Option<AliasMove>> {
        let prefix = log_prefix(adapter, alias);
        match self.store.last_number(&prefix).await? {
            0 => Ok(None),
            last => Ok(Some(self.store.get_json(&numbered_key(&prefix, last)).await?)),
        }
    }

    /// Where each alias of an adapter points now.
    pub(crate) async fn aliases_of(&self, adapter: &AdapterName) -> Result<BTreeMap<String, Version>> {
        let names = self.store.list_children(&aliases_prefix(adapter)).await?.folders;
        let targets: Vec<Option<(String, Version)>> = futures::stream::iter(names)
            .map(|name| async move {
                let alias = AliasName::try_new(name)?;
                let last = self.last_move(adapter, &alias).await?;
                Ok::<_, Error>(last.map(|last| (alias.to_string(), last.to)))
            })
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(targets.into_iter().flatten().collect())
    }

    /// The error for an alias that is not there, naming those that are.
    pub(crate) async fn no_alias(&self, adapter: &AdapterName, alias: &AliasName) -> Result<Error> {
        self.latest(adapter).await?;
        let existing: Vec<String> = self.aliases_of(adapter).await?.into_keys().collect();
        let hint = one_of("it has", &existing, "it has none; point one at a version first (set-alias)");
        Ok(Error::NotFound { what: format!("adapter {adapter} has no alias {alias}"), hint })
    }

    /// Whether this call took the next number.
    async fn append(&self, adapter: &AdapterName, next: &AliasMove) -> Result<bool> {
        let announced = Announced {
            kind: Kind::Alias,
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
            let from = next.from.map_or(0, |version| version.0);
            tracing::info!(%adapter, alias = %next.alias, from, to = next.to.0, who = %next.who, "alias moved");
        }
        Ok(created)
    }
}

/// Whether the last move is the one that is asked for now.
fn is_this_move(last: &AliasMove, to: Version, expected: Expected, reason: &Reason) -> bool {
    let from_as_expected = match expected {
        Expected::Anything => true,
        Expected::Absent => last.from.is_none(),
        Expected::Version(version) => last.from == Some(version),
    };
    let same_words = last.who == reason.who && last.why == reason.why;
    last.to == to && from_as_expected && same_words && !last.rollback
}

fn moved(adapter: &AdapterName, alias: &AliasName, points_to: Option<Version>, expected: Expected) -> Error {
    let version = |version: Version| format!("version {version}");
    let found = points_to.map_or_else(|| "does not exist".into(), |target| format!("points to version {target}"));
    let wanted = match expected {
        Expected::Anything => "anything".into(),
        Expected::Absent => "no alias".into(),
        Expected::Version(wanted) => version(wanted),
    };
    Error::Superseded {
        what: format!("alias {alias} of adapter {adapter} {found}, where {wanted} was expected"),
        remedy: "read it and decide again".into(),
    }
}
