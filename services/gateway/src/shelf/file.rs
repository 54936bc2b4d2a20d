//! One of a version's two files, before it is read: where it is, and how large it may be.

use tailor_pb::registry;

use crate::error::{Error, Result};

pub struct File<'a> {
    version: &'a registry::AdapterVersion,
    name: &'static str,
    pub digest: &'a str,
    pub limit_bytes: u64,
}

impl<'a> File<'a> {
    pub fn of(version: &'a registry::AdapterVersion, name: &'static str, digest: &'a str, limit_bytes: u64) -> Self {
        Self { version, name, digest, limit_bytes }
    }

    /// # Errors
    /// So many bytes are too many.
    pub fn check(&self, size_bytes: u64) -> Result<()> {
        if size_bytes > self.limit_bytes { Err(self.too_large(size_bytes)) } else { Ok(()) }
    }

    /// What the store says of it, for who has asked for the adapter.
    pub fn refused(&self, error: tailor_blobs::Error) -> Error {
        match error {
            tailor_blobs::Error::TooLarge { size_bytes, .. } => self.too_large(size_bytes),
            other => other.into(),
        }
    }

    fn too_large(&self, size_bytes: u64) -> Error {
        let adapter = format!("{}@{}", self.version.adapter, self.version.version);
        Error::TooLarge { adapter, file: self.name, size_bytes, limit_bytes: self.limit_bytes }
    }
}
