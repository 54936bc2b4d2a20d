//! What there is: lists of adapters, and references turned into versions.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use tailor_domain::{AdapterName, AdapterRef, BaseName, Selector, Version};
use tailor_serverkit::Page;
use tailor_serverkit::hint::one_of;

use crate::versions::{AliasedVersion, versions_prefix};
use crate::{Error, Registry, Result};

/// How old a list of all aliases may be where it decides nothing.
const ALIASES_AGE: Duration = Duration::from_secs(1);
/// Adapters that a list reads at once.
const READS_AT_ONCE: usize = 16;
/// Adapters whose aliases are remembered; beyond that all are forgotten.
const MAX_RECENT: usize = 4096;

/// All aliases of an adapter, and when they were read.
pub(crate) type Recent = Arc<Mutex<HashMap<AdapterName, (Instant, Arc<BTreeMap<String, Version>>)>>>;

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
        let adapters: Vec<Option<AdapterSummary>> = futures::stream::iter(names)
            .map(|name| async move { self.summary(AdapterName::try_new(name)?).await })
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await?;
        Ok((adapters.into_iter().flatten().collect(), next))
    }

    /// `None` while an adapter's first version is being published, and once its last one is deleted.
    async fn summary(&self, name: AdapterName) -> Result<Option<AdapterSummary>> {
        if self.store.last_number(&versions_prefix(&name)).await? == 0 {
            return Ok(None);
        }
        let latest = match self.latest_live(&name).await {
            Ok(latest) => latest,
            // All of it is deleted: the list says nothing of it.
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let base = self.manifest(&name, latest).await?.base.clone();
        let aliases = self.aliases_of(&name).await?;
        Ok(Some(AdapterSummary { name, latest, base, aliases }))
    }

    /// Turns `name`, `name@3` or `name@production` into one version. Where the name leads is read from the store at each
    /// call; which other aliases lead there may be [`ALIASES_AGE`] old.
    ///
    /// # Errors
    /// [`Error::NotFound`] names what is missing and what exists.
    pub async fn resolve(&self, reference: &AdapterRef) -> Result<AliasedVersion> {
        let adapter = &reference.adapter;
        let mut own = None;
        let version = match &reference.selector {
            Selector::Latest => self.latest_live(adapter).await?,
            Selector::Version(version) => *version,
            Selector::Alias(alias) => match self.last_move(adapter, alias).await? {
                Some(last) => {
                    own = Some(alias.to_string());
                    last.to
                }
                None => return Err(self.no_alias(adapter, alias).await?),
            },
        };
        let manifest = self.manifest(adapter, version).await?;
        let known = self.recent_aliases(adapter).await?;
        let here = known.iter().filter(|(_, target)| **target == version).map(|(name, _)| name.clone());
        let mut aliases: Vec<String> = here.filter(|name| Some(name) != own.as_ref()).collect();
        aliases.extend(own);
        aliases.sort_unstable();
        // What an alias points to is served whatever became of it.
        if aliases.is_empty() {
            self.require_live(adapter, version).await?;
        }
        Ok(AliasedVersion { manifest, aliases, gone: None })
    }

    async fn recent_aliases(&self, adapter: &AdapterName) -> Result<Arc<BTreeMap<String, Version>>> {
        let known = self.recent.lock().unwrap_or_else(PoisonError::into_inner).get(adapter).cloned();
        if let Some((_, aliases)) = known.filter(|(at, _)| at.elapsed() < ALIASES_AGE) {
            return Ok(aliases);
        }
        let aliases = Arc::new(self.aliases_of(adapter).await?);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= MAX_RECENT {
            recent.clear();
        }
        recent.insert(adapter.clone(), (Instant::now(), aliases.clone()));
        Ok(aliases)
    }

    /// The error for an adapter that is not there, naming those that are.
    pub(crate) async fn no_adapter(&self, adapter: &AdapterName) -> Result<Error> {
        let existing = self.store.list_children("adapters").await?.folders;
        let hint =
            one_of("the adapters are", &existing, "train or import one first (tailor train, tailor adapter import)");
        Ok(Error::NotFound { what: format!("adapter {adapter} does not exist"), hint })
    }
}
