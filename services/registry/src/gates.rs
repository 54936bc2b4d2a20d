//! Gates at the moment of a promotion: what the alias' policy demands, looked up and judged.

use std::collections::{BTreeMap, BTreeSet};

use tailor_domain::policy::{Candidate, Gate, Server};
use tailor_domain::{AdapterManifest, AdapterName, AliasName, Version};
use tailor_peft::{AdapterConfig, Limits};
use tailor_serverkit::trust::check_version;

use crate::{Error, Registry, Result};

impl Registry {
    /// Every gate of an alias' policy for a version, passed or not; `present` is what the alias points to.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such version.
    pub async fn check_policy(&self, adapter: &AdapterName, alias: &AliasName, version: Version) -> Result<Vec<Gate>> {
        let manifest = self.manifest(adapter, version).await?;
        let present = self.last_move(adapter, alias).await?.map(|last| last.to);
        self.judge(&manifest, alias, present, "").await
    }

    /// # Errors
    /// [`Error::Gates`] lists every gate if one is not passed.
    pub(crate) async fn pass_gates(
        &self,
        manifest: &AdapterManifest,
        alias: &AliasName,
        present: Option<Version>,
        who: &str,
    ) -> Result<()> {
        let gates = self.judge(manifest, alias, present, who).await?;
        if gates.iter().all(|gate| gate.passed) {
            return Ok(());
        }
        let (adapter, version) = (manifest.adapter.clone(), manifest.version);
        Err(Error::Gates { adapter, version, alias: alias.clone(), gates })
    }

    async fn judge(
        &self,
        manifest: &AdapterManifest,
        alias: &AliasName,
        present: Option<Version>,
        who: &str,
    ) -> Result<Vec<Gate>> {
        let Some(policy) = self.policy_of(&manifest.adapter, alias).await? else { return Ok(Vec::new()) };
        let gates = policy.gates;
        let present = match present {
            Some(version) => Some(self.manifest(&manifest.adapter, version).await?),
            None => None,
        };
        let mut approved_by = match gates.approvals {
            0 => BTreeSet::new(),
            _ => self.approvers(&manifest.adapter, manifest.version, alias).await?,
        };
        // Of a version whose publisher is not known, whoever moves the alias is not the second pair of eyes.
        let publisher = if manifest.published_by.is_empty() { who } else { &manifest.published_by };
        approved_by.remove(publisher);
        let mut obstacles = BTreeMap::new();
        for server in &gates.serving {
            obstacles.insert(*server, self.obstacles(*server, manifest).await?);
        }
        let candidate = Candidate {
            metrics: manifest.metrics.clone(),
            present_metrics: present.as_ref().map(|present| present.metrics.clone()),
            signed: self.is_signed(manifest),
            publisher: &manifest.published_by,
            approved_by,
            base_fingerprint: manifest.base_fingerprint.as_str(),
            present_base_fingerprint: present.as_ref().map(|present| present.base_fingerprint.as_str()),
            obstacles,
        };
        Ok(gates.judge(&candidate))
    }

    /// Why a server cannot serve a version; empty: it can.
    async fn obstacles(&self, server: Server, manifest: &AdapterManifest) -> Result<Vec<String>> {
        match server {
            Server::Tailor => match self.base(&manifest.base).await {
                Ok(base) if base.fingerprint == manifest.base_fingerprint => Ok(Vec::new()),
                Ok(base) => Ok(vec![format!("base {} has fingerprint {} here", base.name, base.fingerprint)]),
                Err(Error::NotFound { what, .. }) => Ok(vec![what]),
                Err(error) => Err(error),
            },
            Server::Vllm => {
                let limits = Limits::default();
                let json = self.read_small("config_digest", &manifest.config, limits.max_config_bytes).await?;
                let config = AdapterConfig::parse(&json)
                    .map_err(|source| Error::Adapter { adapter: manifest.adapter.to_string(), source })?;
                Ok(config.portability_notes())
            }
        }
    }

    /// Whether a key that this registry trusts has signed the manifest as it is. Where it trusts none, nothing is signed.
    fn is_signed(&self, manifest: &AdapterManifest) -> bool {
        let trusted = &self.trust.trusted;
        !trusted.is_empty() && check_version(&manifest.into(), trusted).is_ok()
    }
}
