//! Versions as they are read: by number, newest first, and what to say when one is missing.

use std::collections::BTreeMap;

use futures::{StreamExt as _, TryStreamExt as _};
use tailor_blobs::numbered_key;
use tailor_domain::{AdapterManifest, AdapterName, Invalid, Version};
use tailor_serverkit::Page;

use crate::{Error, Registry, Result};

const READS_AT_ONCE: usize = 16;

/// A version and the aliases that point to it now.
#[derive(Debug, Clone, PartialEq)]
pub struct AliasedVersion {
    pub manifest: AdapterManifest,
    pub aliases: Vec<String>,
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
        Ok(AliasedVersion { manifest, aliases })
    }

    /// One page of an adapter's versions, newest first, and the next page's token.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such adapter. [`Error::Invalid`]: the token is not ours.
    pub async fn list_versions(&self, adapter: &AdapterName, page: &Page) -> Result<(Vec<AliasedVersion>, String)> {
        let latest = self.latest(adapter).await?.0;
        let first = match &page.after {
            None => latest,
            Some(token) => match token.parse::<u64>() {
                Ok(after) => latest.min(after.saturating_sub(1)),
                Err(_) => return Err(Invalid::new("page.token", format!("{token:?} is no token of ours")).into()),
            },
        };
        let last = first.saturating_sub(page.size as u64) + 1;
        let aliases = self.aliases_of(adapter).await?;
        let versions: Vec<AliasedVersion> = futures::stream::iter((last..=first).rev())
            .map(|number| async move { self.manifest(adapter, Version(number)).await })
            .buffered(READS_AT_ONCE)
            .map_ok(|manifest| AliasedVersion { aliases: names_of(&aliases, manifest.version), manifest })
            .try_collect()
            .await?;
        let next = if last > 1 { last.to_string() } else { String::new() };
        Ok((versions, next))
    }

    /// The newest version's number.
    ///
    /// # Errors
    /// [`Error::NotFound`]: the adapter has none, so it does not exist.
    pub(crate) async fn latest(&self, adapter: &AdapterName) -> Result<Version> {
        match self.store.last_number(&versions_prefix(adapter)).await? {
            0 => Err(self.no_adapter(adapter).await?),
            newest => Ok(Version(newest)),
        }
    }

    pub(crate) async fn manifest(&self, adapter: &AdapterName, version: Version) -> Result<AdapterManifest> {
        if version.0 == 0 {
            return Err(Invalid::new("version", "versions count from 1").into());
        }
        let key = numbered_key(&versions_prefix(adapter), version.0);
        match self.store.find_json(&key).await {
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
