//! Dataset versions: a numbered log under each name, `datasets/<name>/<number>.json`.
//!
//! An entry is a version's manifest or a tombstone. A tombstone deletes every version before it in one create, so a
//! deletion is never half done, an upload that races it is either deleted or not, and a number is never given to other
//! content: a job that names a deleted version finds nothing rather than something else. The bytes stay in the store,
//! where other datasets, jobs and adapters may share them by digest, until garbage is collected.

use serde::{Deserialize, Serialize};
use tailor_blobs::{Creation, numbered_key};
use tailor_domain::{DatasetManifest, DatasetName, Version};
use tailor_serverkit::Page;
use tailor_serverkit::hint::one_of;

use crate::{Datasets, Error, Result};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Entry {
    Version(Box<DatasetManifest>),
    Tombstone(Tombstone),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tombstone {
    deleted_at_ms: u64,
}

/// What adding a version came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Fresh {
    Created(DatasetManifest),
    /// Exactly this content is a version already.
    Known(DatasetManifest),
}

fn prefix(name: &DatasetName) -> String {
    format!("datasets/{name}")
}

impl Datasets {
    /// The dataset's version, or its latest one.
    ///
    /// # Errors
    /// [`Error::NotFound`] says what exists.
    pub async fn version(&self, name: &DatasetName, version: Option<Version>) -> Result<DatasetManifest> {
        let last = self.store.last_number(&prefix(name)).await?;
        let wanted = version.map_or(last, |version| version.0);
        if wanted == 0 || wanted > last {
            return Err(self.missing(name, version).await?);
        }
        // A tombstone may stand anywhere behind the version.
        let entries = self.entries(name, wanted).await?;
        let is_deleted = entries.iter().any(|(_, entry)| matches!(entry, Entry::Tombstone(_)));
        match entries.into_iter().next() {
            Some((_, Entry::Version(manifest))) if !is_deleted => Ok(*manifest),
            Some(_) | None => Err(self.missing(name, version).await?),
        }
    }

    /// One page of datasets by name, each in its latest version, and the next page's token.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn list(&self, page: &Page) -> Result<(Vec<DatasetManifest>, String)> {
        let (names, next) = page.ascending(self.store.list_children("datasets").await?.folders);
        let mut datasets = Vec::with_capacity(names.len());
        for name in names {
            datasets.extend(self.latest(&DatasetName::try_new(name)?).await?);
        }
        Ok((datasets, next))
    }

    /// Deletes all versions and says how many there were.
    ///
    /// # Errors
    /// [`Error::NotFound`]: there is none, or not any more.
    pub async fn delete(&self, name: &DatasetName) -> Result<u64> {
        loop {
            let entries = self.entries(name, 1).await?;
            let last = entries.last().map_or(0, |(number, _)| *number);
            let live = live(entries);
            if live.is_empty() {
                return Err(self.missing(name, None).await?);
            }
            let tombstone = Entry::Tombstone(Tombstone { deleted_at_ms: (self.clock)() });
            let created = self.store.create_json(&numbered_key(&prefix(name), last + 1), &tombstone).await?;
            if created.is_created() {
                tracing::info!(dataset = %name, versions = live.len(), "dataset deleted");
                return Ok(live.len() as u64);
            }
            // Somebody uploaded or deleted meanwhile: look again.
        }
    }

    /// Takes the next number for a manifest, unless a version with this content is there.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`]: there are versions with other content, and `new_version` does not allow another.
    pub(crate) async fn add_version(&self, content: &DatasetManifest, new_version: bool) -> Result<Fresh> {
        let name = &content.name;
        loop {
            let entries = self.entries(name, 1).await?;
            let next = entries.last().map_or(0, |(number, _)| *number) + 1;
            let live = live(entries);
            if let Some(known) = live.iter().rev().find(|version| is_same(version, content)) {
                return Ok(Fresh::Known(known.clone()));
            }
            if let Some(latest) = live.last().filter(|_| !new_version) {
                return Err(Error::AlreadyExists {
                    what: format!("dataset {name} exists already with other content (version {})", latest.version),
                    remedy: "choose another name, or make its next version (--new-version)".into(),
                });
            }
            let manifest = DatasetManifest { version: Version(next), ..content.clone() };
            let entry = Entry::Version(Box::new(manifest.clone()));
            match self.store.create_json(&numbered_key(&prefix(name), next), &entry).await? {
                Creation::Created => return Ok(Fresh::Created(manifest)),
                // Somebody was faster: perhaps with the same content.
                Creation::AlreadyExists(_) => {}
            }
        }
    }

    async fn latest(&self, name: &DatasetName) -> Result<Option<DatasetManifest>> {
        let last = self.store.last_number(&prefix(name)).await?;
        if last == 0 {
            return Ok(None);
        }
        match self.store.get_json(&numbered_key(&prefix(name), last)).await? {
            Entry::Version(manifest) => Ok(Some(*manifest)),
            Entry::Tombstone(_) => Ok(None),
        }
    }

    async fn entries(&self, name: &DatasetName, from: u64) -> Result<Vec<(u64, Entry)>> {
        Ok(self.store.read_numbered(&prefix(name), from).await?)
    }

    /// The error for a dataset or version that is not there, naming those that are.
    async fn missing(&self, name: &DatasetName, version: Option<Version>) -> Result<Error> {
        let live: Vec<String> =
            live(self.entries(name, 1).await?).iter().map(|manifest| manifest.version.to_string()).collect();
        if let Some(version) = version.filter(|_| !live.is_empty()) {
            let hint = one_of("it has version", &live, "");
            return Ok(Error::NotFound { what: format!("dataset {name} has no version {version}"), hint });
        }
        let mut names = Vec::new();
        for other in self.store.list_children("datasets").await?.folders {
            if self.latest(&DatasetName::try_new(&other)?).await?.is_some() {
                names.push(other);
            }
        }
        let hint = one_of("the datasets are", &names, "upload one first (tailor dataset push)");
        Ok(Error::NotFound { what: format!("dataset {name} does not exist"), hint })
    }
}

/// The versions after the last tombstone.
fn live(entries: Vec<(u64, Entry)>) -> Vec<DatasetManifest> {
    let mut live = Vec::new();
    for (_, entry) in entries {
        match entry {
            Entry::Version(manifest) => live.push(*manifest),
            Entry::Tombstone(_) => live.clear(),
        }
    }
    live
}

fn is_same(version: &DatasetManifest, content: &DatasetManifest) -> bool {
    version.source == content.source && version.digest() == content.digest()
}
