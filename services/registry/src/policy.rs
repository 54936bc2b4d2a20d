//! Policies and approvals as records: each alias has a log of policies, each version a log of approvals.

use std::collections::BTreeSet;

use tailor_blobs::numbered_key;
use tailor_domain::{AdapterName, AliasName, Approval, Gates, Invalid, Policy, Version};

use crate::aliases::Reason;
use crate::{Error, Registry, Result};

/// Approvals of one version that are looked at; more than anybody can demand.
const MAX_APPROVALS: usize = 1000;

fn policies_prefix(adapter: &AdapterName, alias: &AliasName) -> String {
    format!("adapters/{adapter}/policies/{alias}")
}

fn approvals_prefix(adapter: &AdapterName, version: Version) -> String {
    format!("adapters/{adapter}/approvals/{version}")
}

impl Registry {
    /// Says what an alias demands from now on.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such adapter.
    pub async fn set_policy(
        &self,
        adapter: &AdapterName,
        alias: &AliasName,
        gates: Gates,
        reason: Reason,
    ) -> Result<Policy> {
        self.latest(adapter).await?;
        loop {
            let last = self.policy_of(adapter, alias).await?;
            if let Some(last) = &last
                && last.gates == gates
                && last.who == reason.who
                && last.why == reason.why
            {
                return Ok(last.clone());
            }
            let next = Policy {
                alias: alias.clone(),
                seq: last.map_or(0, |last| last.seq) + 1,
                gates: gates.clone(),
                who: reason.who.clone(),
                why: reason.why.clone(),
                at_ms: (self.clock)(),
            };
            let key = numbered_key(&policies_prefix(adapter, alias), next.seq);
            if self.store.create_json(&key, &next).await?.is_created() {
                tracing::info!(%adapter, %alias, seq = next.seq, who = %next.who, "policy set");
                self.note("set-policy", &next.who, &next.why, &key, &next).await;
                return Ok(next);
            }
        }
    }

    /// What an alias demands; one that never had a policy demands nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such adapter.
    pub async fn policy(&self, adapter: &AdapterName, alias: &AliasName) -> Result<Policy> {
        self.latest(adapter).await?;
        let none = || Policy {
            alias: alias.clone(),
            seq: 0,
            gates: Gates::default(),
            who: String::new(),
            why: String::new(),
            at_ms: 0,
        };
        Ok(self.policy_of(adapter, alias).await?.unwrap_or_else(none))
    }

    pub(crate) async fn policy_of(&self, adapter: &AdapterName, alias: &AliasName) -> Result<Option<Policy>> {
        let prefix = policies_prefix(adapter, alias);
        match self.store.last_number(&prefix).await? {
            0 => Ok(None),
            last => Ok(Some(self.store.get_json(&numbered_key(&prefix, last)).await?)),
        }
    }

    /// Records that a principal approves a version, for one alias or all.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such version. [`Error::NotReady`]: it is the publisher's own.
    pub async fn approve(
        &self,
        adapter: &AdapterName,
        version: Version,
        alias: Option<AliasName>,
        reason: Reason,
    ) -> Result<Approval> {
        if reason.who.is_empty() {
            return Err(Invalid::new("who", "an approval needs the name of whoever gives it").into());
        }
        let manifest = self.manifest(adapter, version).await?;
        if manifest.published_by == reason.who {
            return Err(Error::NotReady {
                what: format!("{} published version {version} of adapter {adapter}", reason.who),
                remedy: "somebody else must approve it".into(),
            });
        }
        let approvals = self.approvals(adapter, version).await?;
        if let Some(given) = approvals.iter().find(|given| given.who == reason.who && given.alias == alias) {
            return Ok(given.clone());
        }
        if approvals.len() >= MAX_APPROVALS {
            return Err(Error::NotReady {
                what: format!("version {version} of adapter {adapter} has {} approvals", approvals.len()),
                remedy: format!("the limit is {MAX_APPROVALS}"),
            });
        }
        let approval = Approval {
            version,
            alias,
            digest: manifest.digest(),
            who: reason.who,
            why: reason.why,
            at_ms: (self.clock)(),
        };
        let prefix = approvals_prefix(adapter, version);
        let number = self.store.append_numbered(&prefix, |_| approval.clone()).await?;
        self.note("approve", &approval.who, &approval.why, &numbered_key(&prefix, number), &approval).await;
        tracing::info!(%adapter, %version, who = %approval.who, "approved");
        Ok(approval)
    }

    async fn approvals(&self, adapter: &AdapterName, version: Version) -> Result<Vec<Approval>> {
        let all: Vec<(u64, Approval)> = self.store.read_numbered(&approvals_prefix(adapter, version), 1).await?;
        Ok(all.into_iter().map(|(_, approval)| approval).collect())
    }

    /// Who has approved a version for an alias.
    pub(crate) async fn approvers(
        &self,
        adapter: &AdapterName,
        version: Version,
        alias: &AliasName,
    ) -> Result<BTreeSet<String>> {
        let all = self.approvals(adapter, version).await?;
        let counts = |approval: &Approval| approval.alias.as_ref().is_none_or(|only| only == alias);
        Ok(all.into_iter().filter(counts).map(|approval| approval.who).collect())
    }
}
