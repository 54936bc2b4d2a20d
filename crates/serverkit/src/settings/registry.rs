//! The registry's: what it takes, what it keeps and for how long, and how signatures are made and checked.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Error, positive};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Largest blob taken: one file of a base's folder.
    pub max_blob_bytes: u64,
    /// Versions that an adapter may have, deleted ones not counted; 0: any number.
    pub quota_versions: u64,
    /// Bytes that an adapter's weights may take; 0: any number.
    pub quota_bytes: u64,
    /// How long a deleted version can be undeleted.
    pub undelete_ms: u64,
    /// How old a blob that nothing names must be to be marked as garbage, and how long a mark waits.
    pub collect_grace_ms: u64,
    /// How often garbage is collected without being asked; 0: never.
    pub collect_every_ms: u64,
    /// How often the log of changes is looked at while somebody watches. Changes made by this registry itself are told at
    /// once; this is for those of others on the same store, and for telling watchers that they are up to date.
    pub watch_poll_ms: u64,
}

/// Signatures: the registry signs, whoever loads or downloads an adapter checks.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trust {
    /// The registry's ed25519 key: 64 hex digits or PEM. Absent: nothing is signed.
    pub signing_key: Option<String>,
    /// A file with it.
    pub signing_key_file: Option<PathBuf>,
    /// Public keys in hex, parted by commas, or PEM. With any, only what one of them has signed is served and exported.
    pub trusted_keys: String,
    /// A file with more of them.
    pub trusted_keys_file: Option<PathBuf>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust")
            .field("signing_key", &self.signing_key.as_ref().map(|_| "…"))
            .field("signing_key_file", &self.signing_key_file)
            .field("trusted_keys", &self.trusted_keys)
            .field("trusted_keys_file", &self.trusted_keys_file)
            .finish()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            max_blob_bytes: 64 << 30,
            quota_versions: 0,
            quota_bytes: 0,
            undelete_ms: 7 * 86_400_000,
            collect_grace_ms: 86_400_000,
            collect_every_ms: 0,
            watch_poll_ms: 40,
        }
    }
}

impl Registry {
    pub(super) fn check(&self) -> Result<(), Error> {
        positive("registry.max_blob_bytes", self.max_blob_bytes)?;
        positive("registry.watch_poll_ms", self.watch_poll_ms)?;
        let least = tailor_blobs::gc::MIN_GRACE.as_millis() as u64;
        if self.collect_grace_ms < least {
            let problem =
                format!("{} ms is shorter than what a publish may take; the least is {least}", self.collect_grace_ms);
            return Err(Error::Invalid { key: "registry.collect_grace_ms", problem });
        }
        Ok(())
    }
}
