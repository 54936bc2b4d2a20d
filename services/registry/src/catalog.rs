//! What there is: lists of adapters, and references turned into versions.

use std::collections::BTreeMap;

use tailor_domain::{AdapterName, AdapterRef, BaseName, Selector, Version};
use tailor_serverkit::Page;
use tailor_serverkit::hint::one_of;

use crate::versions::{AliasedVersion, versions_prefix};
use crate::{Error, Registry, Result};

/// An adapter as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterSummary {
    pub name: AdapterName,
    pub latest: Version,
    /// The latest version's.
    pub base: BaseName,
    pub aliases: BTreeMap<String, Version>,
}

impl Registry {
    /// One page of adapters by name, and the next page's token.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn list_adapters(&self, page: &Page) -> Result<(Vec<AdapterSummary>, String)> {
        let (names, next) = page.ascending(self.store.list_children("adapters").await?.folders);
        let mut adapters = Vec::with_capacity(names.len());
        for name in names {
            adapters.extend(self.summary(AdapterName::try_new(name)?).await?);
        }
        Ok((adapters, next))
    }

    /// `None` while an adapter's first version is being published.
    async fn summary(&self, name: AdapterName) -> Result<Option<AdapterSummary>> {
        let latest = match self.store.last_number(&versions_prefix(&name)).await? {
            0 => return Ok(None),
            number => Version(number),
        };
        let base = self.manifest(&name, latest).await?.base;
        let aliases = self.aliases_of(&name).await?;
        Ok(Some(AdapterSummary { name, latest, base, aliases }))
    }

    /// Turns `name`, `name@3` or `name@production` into one version.
    ///
    /// # Errors
    /// [`Error::NotFound`] names what is missing and what exists.
    pub async fn resolve(&self, reference: &AdapterRef) -> Result<AliasedVersion> {
        let adapter = &reference.adapter;
        let version = match &reference.selector {
            Selector::Latest => self.latest(adapter).await?,
            Selector::Version(version) => *version,
            Selector::Alias(alias) => match self.last_move(adapter, alias).await? {
                Some(last) => last.to,
                None => return Err(self.no_alias(adapter, alias).await?),
            },
        };
        self.version(adapter, version).await
    }

    /// The error for an adapter that is not there, naming those that are.
    pub(crate) async fn no_adapter(&self, adapter: &AdapterName) -> Result<Error> {
        let existing = self.store.list_children("adapters").await?.folders;
        let hint =
            one_of("the adapters are", &existing, "train or import one first (tailor train, tailor adapter import)");
        Ok(Error::NotFound { what: format!("adapter {adapter} does not exist"), hint })
    }
}
