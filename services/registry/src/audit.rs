//! The audit log: who did what, in one order, so that nothing written can be changed or taken out unnoticed.
//!
//! `audit/<seq>.json` is a *link*: it holds the sha256 of the link before it, and of each record that a deed has made. A change of
//! any record, or of any link but the last, breaks the chain, and which one it was can be named ([`crate::verify`]). With a
//! signing key each link is signed too, which covers the last. A copy of the newest link kept elsewhere shows a cut end.
//!
//! A deed is its record; the link follows. Where a process dies between the two, or the store fails, the record stands and the
//! link is made up for ([`Registry::catch_up`]) before the log is exported, verified or collected: late, never missing. Deeds
//! that come together share a link, so that a burst of publishers does not queue for numbers.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tailor_blobs::{numbered_key, record_digest};
use tailor_domain::{Digest, Signature};
use tailor_trust::sign_bytes;

use crate::{Error, Registry, Result};

const AUDIT: &str = "audit";
/// What a link's signature covers is this kind of text.
pub(crate) const LINK_TYPE: &str = "application/vnd.tailor.audit+json";
/// Deeds of one link.
const MAX_DEEDS: usize = 500;
/// Folders whose records are deeds.
const AUDITED: [&str; 2] = ["adapters", "bases"];

/// One record that somebody made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// `publish`, `set-alias`, `rollback`, `delete`, `undelete`, `purge`, `set-retention`, `register-base`; `found` for a
    /// record that was made up for.
    pub what: String,
    pub who: String,
    pub why: String,
    /// The record.
    pub key: String,
    /// The sha256 of the record's bytes.
    pub digest: Digest,
}

/// `audit/<seq>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub seq: u64,
    /// The sha256 of the link before; absent in the first.
    pub prev: Option<Digest>,
    pub at_ms: u64,
    pub deeds: Vec<Deed>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<Signature>,
}

/// A link as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLink {
    pub seq: u64,
    pub bytes: Bytes,
    pub digest: Digest,
}

/// What making up for missing links came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CaughtUp {
    pub linked: u64,
    /// Records that no link names and that are no JSON, with the reason.
    pub unreadable: Vec<(String, String)>,
}

/// The end of the chain, as this process knows it.
#[derive(Debug, Clone, Default)]
struct Tail {
    seq: u64,
    digest: Option<Digest>,
}

/// Deeds of this process on their way into the log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Auditor {
    pending: Arc<Mutex<Vec<Deed>>>,
    /// One link of this process is under way at a time.
    turn: Arc<tokio::sync::Mutex<Tail>>,
}

impl Auditor {
    fn push(&self, deeds: Vec<Deed>) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).extend(deeds);
    }

    fn take(&self) -> Vec<Deed> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let count = pending.len().min(MAX_DEEDS);
        pending.drain(..count).collect()
    }
}

impl Registry {
    /// Notes that somebody made a record. Best effort: what fails here is made up for.
    ///
    /// The digest is that of what was written, and is not read back: a read that broke off would be in the log for good.
    pub(crate) async fn note<T: Serialize>(&self, what: &str, who: &str, why: &str, key: &str, record: &T) {
        let noted = async {
            let digest = record_digest(key, record)?;
            let deed = Deed { what: what.into(), who: who.into(), why: why.into(), key: key.into(), digest };
            self.log(vec![deed]).await
        };
        if let Err(error) = noted.await {
            tracing::warn!(key, %error, "the audit log has no link for a record yet; the next export makes up for it");
        }
    }

    /// Puts deeds into the log, those of others that wait as well.
    async fn log(&self, deeds: Vec<Deed>) -> Result<()> {
        self.auditor.push(deeds);
        let mut tail = self.auditor.turn.lock().await;
        loop {
            // Empty: whoever had the turn before took ours along.
            let deeds = self.auditor.take();
            if deeds.is_empty() {
                return Ok(());
            }
            if tail.seq == 0 {
                *tail = self.end_of_chain().await?;
            }
            self.link(&mut tail, deeds).await?;
        }
    }

    async fn link(&self, tail: &mut Tail, deeds: Vec<Deed>) -> Result<()> {
        let mut link = Link { seq: 0, prev: None, at_ms: (self.clock)(), deeds, signatures: Vec::new() };
        loop {
            (link.seq, link.prev) = (tail.seq + 1, tail.digest.clone());
            let bytes = self.sealed(&link)?;
            let key = numbered_key(AUDIT, link.seq);
            let taken = self.store.create_raw(&key, bytes.clone()).await?;
            let is_ours = taken.is_none();
            *tail = Tail { seq: link.seq, digest: Some(whole(&key, &taken.unwrap_or(bytes))?) };
            if is_ours {
                return Ok(());
            }
            // Another registry's link: ours comes after it.
        }
    }

    fn sealed(&self, link: &Link) -> Result<Bytes> {
        let broken = |error: serde_json::Error| Error::Defect { problem: format!("a link of the audit log: {error}") };
        let body = serde_json::to_vec(link).map_err(broken)?;
        let Some(key) = &self.trust.own else { return Ok(body.into()) };
        let signed = Link { signatures: vec![sign_bytes(key, LINK_TYPE, &body)], ..link.clone() };
        Ok(serde_json::to_vec(&signed).map_err(broken)?.into())
    }

    async fn end_of_chain(&self) -> Result<Tail> {
        match self.store.last_number(AUDIT).await? {
            0 => Ok(Tail::default()),
            seq => {
                let key = numbered_key(AUDIT, seq);
                Ok(Tail { seq, digest: Some(whole(&key, &self.store.get_raw(&key).await?)?) })
            }
        }
    }

    /// The links from a number on, at most so many.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn links(&self, from: u64, most: usize) -> Result<Vec<StoredLink>> {
        let mut links = Vec::new();
        for seq in from.max(1).. {
            if links.len() == most {
                break;
            }
            match self.store.get_raw(&numbered_key(AUDIT, seq)).await {
                Ok(bytes) => links.push(StoredLink { seq, digest: Digest::of(&bytes), bytes }),
                Err(error) if error.is_not_found() => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(links)
    }

    /// Links every record that no link names.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn catch_up(&self) -> Result<CaughtUp> {
        let named = self.named_records().await?;
        let mut found = Vec::new();
        for folder in AUDITED {
            found.extend(self.store.list(folder).await?.into_iter().filter(|key| !named.contains(key)));
        }
        let mut caught = CaughtUp::default();
        for keys in found.chunks(MAX_DEEDS) {
            let mut deeds = Vec::with_capacity(keys.len());
            for key in keys {
                match whole(key, &self.store.get_raw(key).await?) {
                    Ok(digest) => {
                        let (what, who, why) = ("found".into(), "registry".into(), "it was not in the log".into());
                        deeds.push(Deed { what, who, why, key: key.clone(), digest });
                    }
                    Err(error) => caught.unreadable.push((key.clone(), error.to_string())),
                }
            }
            caught.linked += deeds.len() as u64;
            self.log(deeds).await?;
        }
        Ok(caught)
    }

    async fn named_records(&self) -> Result<BTreeSet<String>> {
        let mut named = BTreeSet::new();
        let mut from = 1;
        loop {
            let links = self.links(from, MAX_DEEDS).await?;
            let Some(last) = links.last() else { return Ok(named) };
            from = last.seq + 1;
            for link in &links {
                // One that cannot be read is for `verify` to name.
                let deeds = serde_json::from_slice::<Link>(&link.bytes).map(|link| link.deeds).unwrap_or_default();
                named.extend(deeds.into_iter().map(|deed| deed.key));
            }
        }
    }
}

/// The digest of a record that was read. A read that broke off is half a JSON document, which is none.
fn whole(key: &str, bytes: &[u8]) -> Result<Digest> {
    match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
        Ok(_) => Ok(Digest::of(bytes)),
        Err(error) => {
            let (key, what) = (key.to_owned(), "a record".to_owned());
            Err(tailor_blobs::Error::Malformed { key, what, problem: error.to_string() }.into())
        }
    }
}

pub(crate) fn link_key(seq: u64) -> String {
    numbered_key(AUDIT, seq)
}
