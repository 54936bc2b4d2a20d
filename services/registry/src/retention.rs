//! Which versions are kept, by rules that an adapter's owner sets: `adapters/<name>/retention/<seq>.json`, the last counts.
//!
//! A rule keeps; nothing deletes but the absence of a rule that keeps. Without rules everything stays. What an alias points
//! to, and what a rollback would bring back, is kept whatever the rules say.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tailor_blobs::numbered_key;
use tailor_domain::{AdapterManifest, AdapterName, AliasName, Invalid, Version};

use crate::aliases::Reason;
use crate::{Registry, Result};

/// A version that any of these keeps stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rules {
    /// The newest so many.
    pub keep_last: u64,
    /// Whatever is younger.
    pub keep_ms: u64,
    /// Whatever bears one of these tags.
    pub keep_tags: BTreeSet<String>,
}

impl Rules {
    /// # Errors
    /// Rules that would keep nothing.
    pub fn try_new(keep_last: u64, keep_ms: u64, keep_tags: BTreeSet<String>) -> Result<Self, Invalid> {
        if keep_last == 0 && keep_ms == 0 {
            let problem =
                "keep_last and keep_ms are both 0, so every version without an alias would go; keep at least one";
            return Err(Invalid::new("rules", problem));
        }
        Ok(Self { keep_last, keep_ms, keep_tags })
    }

    /// Which of the live versions (ascending) no rule keeps and nothing `needed` names.
    pub(crate) fn expired(&self, live: &[Aged], needed: &BTreeSet<Version>, now_ms: u64) -> Vec<u64> {
        let newest = live.len().saturating_sub(usize::try_from(self.keep_last).unwrap_or(usize::MAX));
        let kept = |(at, version): &(usize, &Aged)| {
            *at >= newest
                || now_ms.saturating_sub(version.created_at_ms) < self.keep_ms
                || version.tags.iter().any(|tag| self.keep_tags.contains(tag))
                || needed.contains(&version.version)
        };
        live.iter().enumerate().filter(|entry| !kept(entry)).map(|(_, version)| version.version.0).collect()
    }
}

/// What the rules look at.
#[derive(Debug, Clone)]
pub(crate) struct Aged {
    pub version: Version,
    pub created_at_ms: u64,
    pub tags: BTreeSet<String>,
}

impl From<&AdapterManifest> for Aged {
    fn from(manifest: &AdapterManifest) -> Self {
        Self { version: manifest.version, created_at_ms: manifest.created_at_ms, tags: manifest.tags.clone() }
    }
}

/// An entry of the log. `None` takes the rules away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    pub rules: Option<Rules>,
    pub who: String,
    pub why: String,
    pub at_ms: u64,
}

fn prefix(adapter: &AdapterName) -> String {
    format!("adapters/{adapter}/retention")
}

impl Registry {
    /// Sets an adapter's rules, or takes them away. The same rules again change nothing.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`]: no such adapter.
    pub async fn set_retention(
        &self,
        adapter: &AdapterName,
        rules: Option<Rules>,
        Reason { who, why }: Reason,
    ) -> Result<Retention> {
        self.latest(adapter).await?;
        if let Some(current) = self.retention(adapter).await?.filter(|current| current.rules == rules) {
            return Ok(current);
        }
        let entry = Retention { rules, who, why, at_ms: (self.clock)() };
        let number = self.store.append_numbered(&prefix(adapter), |_| entry.clone()).await?;
        self.note("set-retention", &entry.who, &entry.why, &numbered_key(&prefix(adapter), number), &entry).await;
        Ok(entry)
    }

    /// The rules in force, and who set them; `None` if nobody ever did.
    ///
    /// # Errors
    /// [`crate::Error::Store`].
    pub async fn retention(&self, adapter: &AdapterName) -> Result<Option<Retention>> {
        match self.store.last_number(&prefix(adapter)).await? {
            0 => Ok(None),
            last => Ok(Some(self.store.get_json(&numbered_key(&prefix(adapter), last)).await?)),
        }
    }

    /// What no rule may take: where each alias points, where a rollback of it would lead, and both sides of a rollout.
    pub(crate) async fn needed(&self, adapter: &AdapterName) -> Result<BTreeSet<Version>> {
        let moves = self.last_moves(adapter).await?;
        let mut needed: BTreeSet<Version> =
            moves.iter().flat_map(|last| [Some(last.to), last.from]).flatten().collect();
        for alias in self.store.list_children(&format!("adapters/{adapter}/rollouts")).await?.folders {
            let rollout = self.last_rollout(adapter, &AliasName::try_new(alias)?).await?;
            needed.extend(
                rollout.filter(|last| last.state.splits()).into_iter().flat_map(|last| [last.stable, last.canary]),
            );
        }
        Ok(needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions() -> Vec<Aged> {
        let tagged = |number: u64| if number == 2 { BTreeSet::from(["release".to_owned()]) } else { BTreeSet::new() };
        (1..=6)
            .map(|number| Aged { version: Version(number), created_at_ms: number * 100, tags: tagged(number) })
            .collect()
    }

    fn expired(keep_last: u64, keep_ms: u64, tags: &[&str], needed: &[u64]) -> Vec<u64> {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let rules = Rules::try_new(keep_last, keep_ms, tags).expect("rules");
        rules.expired(&versions(), &needed.iter().copied().map(Version).collect(), 700)
    }

    #[test]
    fn a_version_that_any_rule_keeps_stays() {
        assert_eq!(expired(2, 0, &[], &[]), [1, 2, 3, 4]);
        assert_eq!(expired(2, 0, &["release"], &[]), [1, 3, 4]);
        assert_eq!(expired(1, 250, &[], &[]), [1, 2, 3, 4]);
        assert_eq!(expired(1, 0, &["release"], &[1, 4]), [3, 5]);
        assert_eq!(expired(u64::MAX, 0, &[], &[]), Vec::<u64>::new());
    }

    #[test]
    fn rules_that_would_keep_nothing_are_refused() {
        let error = Rules::try_new(0, 0, BTreeSet::from(["release".to_owned()])).expect_err("keeps nothing");
        assert!(error.to_string().contains("keep_last"), "{error}");
    }
}
