//! Versions as they are read: by number, newest first, and what to say when one is missing.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use tailor_blobs::numbered_key;
use tailor_domain::{AdapterManifest, AdapterName, Invalid, Version};
use tailor_serverkit::Page;

use crate::life::Gone;
use crate::{Error, Registry, Result};

const READS_AT_ONCE: usize = 16;

/// A version, the aliases that point to it now, and whether it is gone.
#[derive(Debug, Clone, PartialEq)]
pub struct AliasedVersion {
    pub manifest: Arc<AdapterManifest>,
    pub aliases: Vec<String>,
    pub gone: Option<Gone>,
}

pub(crate) fn versions_prefix(adapter: &AdapterName) -> String {
    format!("adapters/{adapter}/versions")
}

impl Registry {
    /// # Errors
    /// [`Error::NotFound`] says what exists.
    pub async fn version(&self, adapter: &AdapterName, version: Version) -> Result<AliasedVersion> {
        let manifest = self.manifest(adapter, version).await?;
        let aliases = names_of(&self.aliases_of(adapter).await?, version);
        let gone = self.life(adapter).await?.of(version).cloned();
        Ok(AliasedVersion { manifest, aliases, gone })
    }

    /// One page of an adapter's versions, newest first, and the next page's token. Deleted ones are left out unless asked for.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such adapter. [`Error::Invalid`]: the token is not ours.
    pub async fn list_versions(
        &self,
        adapter: &AdapterName,
        page: &Page,
        with_deleted: bool,
    ) -> Result<(Vec<AliasedVersion>, String)> {
        let latest = self.latest(adapter).await?.0;
        let first = match &page.after {
            None => latest,
            Some(token) => match token.parse::<u64>() {
                Ok(after) => latest.min(after.saturating_sub(1)),
                Err(_) => return Err(Invalid::new("page.token", format!("{token:?} is no token of ours")).into()),
            },
        };
        let life = self.life(adapter).await?;
        let mut shown = (1..=first).rev().filter(|number| with_deleted || life.of(Version(*number)).is_none());
        let numbers: Vec<u64> = shown.by_ref().take(page.size).collect();
        let next = match (shown.next(), numbers.last()) {
            (Some(_), Some(last)) => last.to_string(),
            (None, _) | (_, None) => String::new(),
        };
        let aliases = self.aliases_of(adapter).await?;
        let versions: Vec<AliasedVersion> = futures::stream::iter(numbers)
            .map(|number| async move { self.manifest(adapter, Version(number)).await })
            .buffered(READS_AT_ONCE)
            .map_ok(|manifest| AliasedVersion {
                aliases: names_of(&aliases, manifest.version),
                gone: life.of(manifest.version).cloned(),
                manifest,
            })
            .try_collect()
            .await?;
        Ok((versions, next))
    }

    /// The newest version's number, deleted or not.
    ///
    /// # Errors
    /// [`Error::NotFound`]: the adapter has none, so it does not exist.
    pub(crate) async fn latest(&self, adapter: &AdapterName) -> Result<Version> {
        match self.store.last_number(&versions_prefix(adapter)).await? {
            0 => Err(self.no_adapter(adapter).await?),
            newest => Ok(Version(newest)),
        }
    }

    /// The newest version that is not deleted.
    ///
    /// # Errors
    /// [`Error::NotFound`]: there is none.
    pub(crate) async fn latest_live(&self, adapter: &AdapterName) -> Result<Version> {
        let newest = self.latest(adapter).await?;
        let life = self.life(adapter).await?;
        let live = (1..=newest.0).rev().map(Version).find(|version| life.of(*version).is_none());
        live.ok_or_else(|| Error::NotFound {
            what: format!("every version of adapter {adapter} was deleted"),
            hint: format!("undelete one (tailor adapter undelete {adapter}@{newest}) or publish another"),
        })
    }

    pub(crate) async fn manifest(&self, adapter: &AdapterName, version: Version) -> Result<Arc<AdapterManifest>> {
        if version.0 == 0 {
            return Err(Invalid::new("version", "versions count from 1").into());
        }
        let key = numbered_key(&versions_prefix(adapter), version.0);
        match self.manifests.find(&self.store, &key).await {
            Ok(Some(manifest)) => Ok(manifest),
            // A number too large for a key is a version that cannot exist either.
            Ok(None) | Err(tailor_blobs::Error::InvalidKey { .. }) => Err(Error::NotFound {
                hint: match self.latest(adapter).await? {
                    Version(1) => "it has version 1".into(),
                    newest => format!("it has versions 1 to {newest}"),
                },
                what: format!("adapter {adapter} has no version {version}"),
            }),
            Err(error) => Err(error.into()),
        }
    }
}

fn names_of(aliases: &BTreeMap<String, Version>, version: Version) -> Vec<String> {
    aliases.iter().filter(|(_, target)| **target == version).map(|(name, _)| name.clone()).collect()
}
