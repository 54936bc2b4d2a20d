//! Looks at every stored byte that the registry answers for, and names what was changed.
//!
//! ```text
//! audit links ── chained, signed ──▶ records ── their digests are in the links
//! versions    ── signed            ──▶ blobs   ── their names are their digests
//! ```
//!
//! Reads the whole store: for a night, or after an incident.

use std::collections::{BTreeMap, HashMap};

use futures::TryStreamExt as _;
use serde_json::Value;
use tailor_blobs::numbered_key;
use tailor_domain::{AdapterManifest, AdapterName, Digest, Version};
use tailor_trust::{Claims, record_digest, verify_bytes};

use crate::audit::{LINK_TYPE, Link, link_key};
use crate::segments::SEGMENT;
use crate::versions::versions_prefix;
use crate::{Registry, Result};

const LINKS_AT_ONCE: usize = 256;

/// What was looked at, and what is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    pub links: u64,
    pub records: u64,
    pub blobs: u64,
    /// Records that had no link; they have one now.
    pub made_up: u64,
    /// By the object's key.
    pub problems: BTreeMap<String, String>,
}

impl Verified {
    fn problem(&mut self, key: impl Into<String>, problem: impl Into<String>) {
        self.problems.entry(key.into()).or_insert_with(|| problem.into());
    }
}

impl Registry {
    /// # Errors
    /// [`crate::Error::Store`]: the store is away. What is damaged is no error but a finding.
    pub async fn verify(&self) -> Result<Verified> {
        let mut seen = Verified::default();
        let mut named = self.verify_chain(&mut seen).await?;
        // A broken chain is evidence: nothing is added to it.
        if seen.problems.is_empty() {
            let caught = self.catch_up().await?;
            if caught.linked > 0 {
                seen = Verified { made_up: caught.linked, ..Verified::default() };
                named = self.verify_chain(&mut seen).await?;
            }
            caught.unreadable.into_iter().for_each(|(key, problem)| seen.problem(key, problem));
        }
        self.verify_records(&named, &mut seen).await?;
        for blob in self.store.list_blobs().await? {
            seen.blobs += 1;
            if let Err(problem) = self.read_through(&blob.digest).await? {
                let hex = blob.digest.hex();
                seen.problem(format!("blobs/sha256/{}/{hex}", &hex[..2]), problem);
            }
        }
        for adapter in self.adapter_names().await? {
            self.verify_adapter(&adapter, &mut seen).await?;
        }
        if !seen.problems.is_empty() {
            tracing::error!(problems = ?seen.problems, "the store is not as it was written");
        }
        Ok(seen)
    }

    /// Walks the chain. Returns the digest that it has for each record.
    async fn verify_chain(&self, seen: &mut Verified) -> Result<HashMap<String, Digest>> {
        let listed = self.store.list("audit").await?;
        if let Some((seq, _)) = (1..).zip(&listed).find(|(seq, key)| **key != link_key(*seq)) {
            seen.problem(link_key(seq), "it is gone");
        }
        let mut named = HashMap::new();
        let (mut before, mut from) = (None, 1);
        loop {
            let links = self.links(from, LINKS_AT_ONCE).await?;
            let Some(last) = links.last() else { return Ok(named) };
            from = last.seq + 1;
            for stored in links {
                seen.links += 1;
                let key = link_key(stored.seq);
                match self.read_link(&stored.bytes) {
                    Err(problem) => seen.problem(key, problem),
                    Ok(link) if link.seq != stored.seq => {
                        seen.problem(key, format!("it says that it is number {}", link.seq));
                    }
                    Ok(link) => {
                        if link.prev != before {
                            // This one can be trusted to say what the one before it was, if it is signed.
                            let changed = if self.trust.trusted.is_empty() { stored.seq } else { stored.seq - 1 };
                            seen.problem(link_key(changed.max(1)), "it is not what the next link says it was");
                        }
                        named.extend(link.deeds.into_iter().map(|deed| (deed.key, deed.digest)));
                    }
                }
                before = Some(stored.digest);
            }
        }
    }

    fn read_link(&self, bytes: &[u8]) -> Result<Link, String> {
        let mut value: Value = serde_json::from_slice(bytes).map_err(|error| format!("it cannot be read: {error}"))?;
        let link: Link =
            serde_json::from_value(value.clone()).map_err(|error| format!("it cannot be read: {error}"))?;
        if self.trust.trusted.is_empty() {
            return Ok(link);
        }
        if let Some(fields) = value.as_object_mut() {
            fields.shift_remove("signatures");
        }
        let body = value.to_string();
        let outcome = verify_bytes("it", LINK_TYPE, body.as_bytes(), &link.signatures, &self.trust.trusted);
        outcome.map(|()| link).map_err(|error| error.to_string())
    }

    async fn verify_records(&self, named: &HashMap<String, Digest>, seen: &mut Verified) -> Result<()> {
        for (key, digest) in named {
            seen.records += 1;
            match self.store.get_raw(key).await {
                Ok(bytes) if Digest::of(&bytes) == *digest => {}
                Ok(bytes) => seen.problem(key, format!("it has {}, and {digest} was written", Digest::of(&bytes))),
                Err(error) if error.is_not_found() => seen.problem(key, "it is gone"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether a blob reads as what its name says.
    async fn read_through(&self, digest: &Digest) -> Result<Result<(), String>> {
        let read = async {
            let mut pieces = self.store.open_blob_stream(digest).await?;
            while pieces.try_next().await?.is_some() {}
            Ok(())
        };
        match read.await {
            Ok(()) => Ok(Ok(())),
            Err(error @ (tailor_blobs::Error::Corrupt { .. } | tailor_blobs::Error::NotFound { .. })) => {
                Ok(Err(error.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn verify_adapter(&self, adapter: &AdapterName, seen: &mut Verified) -> Result<()> {
        let prefix = versions_prefix(adapter);
        let (life, needed) = match (self.life(adapter).await, self.needed(adapter).await) {
            (Ok(life), Ok(needed)) => (life, needed),
            // A damaged record of its life or of an alias: the chain has named it.
            (Err(error), _) | (_, Err(error)) if !error.is_away() => return Ok(()),
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        let mut records = HashMap::new();
        for number in 1..=self.store.last_number(&prefix).await? {
            let key = numbered_key(&prefix, number);
            let bytes = match self.store.get_raw(&key).await {
                Ok(bytes) => bytes,
                Err(error) if error.is_not_found() => {
                    seen.problem(key, "it is gone");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let manifest: AdapterManifest = match serde_json::from_slice(&bytes) {
                Ok(manifest) => manifest,
                Err(error) => {
                    seen.problem(key, format!("it cannot be read: {error}"));
                    continue;
                }
            };
            if let Err(problem) = self.verify_manifest(&bytes, &manifest, adapter, number) {
                seen.problem(&key, problem);
            }
            let purged = life.of(Version(number)).is_some_and(|gone| gone.purged) && !needed.contains(&Version(number));
            for digest in [&manifest.weights, &manifest.config].into_iter().filter(|_| !purged) {
                if self.store.blob_size(digest).await?.is_none() {
                    let hex = digest.hex();
                    seen.problem(
                        format!("blobs/sha256/{}/{hex}", &hex[..2]),
                        format!("{key} names it, and it is gone"),
                    );
                }
            }
            records.insert(number, manifest);
        }
        self.verify_segments(adapter, &records, seen).await
    }

    fn verify_manifest(
        &self,
        bytes: &[u8],
        manifest: &AdapterManifest,
        adapter: &AdapterName,
        number: u64,
    ) -> Result<(), String> {
        let record = record_digest(bytes)?;
        let claims = Claims {
            adapter: adapter.as_str(),
            version: number,
            weights: &manifest.weights,
            config: &manifest.config,
            base_fingerprint: &manifest.base_fingerprint,
            prompt_template: &manifest.prompt_template,
            record: Some(&record),
        };
        let opened = tailor_trust::open(manifest.attestation.as_ref(), &claims, &self.trust.trusted);
        opened.map(drop).map_err(|error| error.to_string())
    }

    /// A segment holds copies of versions.
    async fn verify_segments(
        &self,
        adapter: &AdapterName,
        records: &HashMap<u64, AdapterManifest>,
        seen: &mut Verified,
    ) -> Result<()> {
        let prefix = format!("adapters/{adapter}/segments");
        for number in 1..=self.store.last_number(&prefix).await? {
            let key = numbered_key(&prefix, number);
            let copies = serde_json::from_slice::<Vec<AdapterManifest>>(&self.store.get_raw(&key).await?);
            let first = (number - 1) * SEGMENT + 1;
            let same = copies.is_ok_and(|copies| {
                (first..).zip(&copies).all(|(version, copy)| records.get(&version) == Some(copy))
                    && copies.len() as u64 == SEGMENT
            });
            if !same {
                seen.problem(key, "it is no copy of the versions that it stands for; delete it, it is made again");
            }
        }
        Ok(())
    }
}
