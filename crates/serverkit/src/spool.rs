//! Bytes from a caller, on local disk until they are known to be what was announced: bounded, hashed, gone on any error.

mod partial;

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tailor_domain::{Digest, ErrorCode};
use tempfile::TempPath;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use crate::status::Coded;

pub use partial::Partial;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the upload is larger than the limit of {limit_bytes} bytes ({setting}); send less or raise the limit")]
    TooLarge { limit_bytes: u64, setting: &'static str },
    #[error("no room left in {folder} to receive the upload: {problem}; free some space, then try again")]
    Full { folder: String, problem: String },
    #[error("folder {folder} cannot take the upload: {problem}; check cache_dir in the service's settings")]
    Unusable { folder: String, problem: String },
}

impl Error {
    /// What a file operation in the spool's folder came to.
    pub fn from_io(folder: &Path, error: &io::Error) -> Self {
        let (folder, problem) = (folder.display().to_string(), error.to_string());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { folder, problem },
            _ => Self::Unusable { folder, problem },
        }
    }
}

impl Coded for Error {
    fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge { .. } | Self::Full { .. } => ErrorCode::ResourceExhausted,
            Self::Unusable { .. } => ErrorCode::Internal,
        }
    }

    fn exceeds(&self) -> Option<&'static str> {
        match self {
            Self::TooLarge { setting, .. } => Some(*setting),
            Self::Full { .. } | Self::Unusable { .. } => None,
        }
    }
}

/// How many bytes a spool takes, and which setting says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub bytes: u64,
    pub setting: &'static str,
}

/// A temporary file that is being received. Dropping it deletes it.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    path: TempPath,
    file: File,
    hasher: Sha256,
    size_bytes: u64,
    limit: Limit,
}

/// A file that arrived whole. Deleted when dropped.
#[derive(Debug)]
pub struct Spooled {
    path: TempPath,
    pub digest: Digest,
    pub size_bytes: u64,
}

impl Spool {
    /// Makes an empty file in `folder`, which is made if absent.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Unusable`].
    pub fn create(folder: &Path, limit: Limit) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::from_io(folder, &error);
        std::fs::create_dir_all(folder).map_err(failed)?;
        let (file, path) = tempfile::NamedTempFile::new_in(folder).map_err(failed)?.into_parts();
        Ok(Self {
            folder: folder.to_owned(),
            path,
            file: File::from_std(file),
            hasher: Sha256::new(),
            size_bytes: 0,
            limit,
        })
    }

    /// # Errors
    /// As [`Spool::create`]; [`Error::TooLarge`] before a byte above the limit is written.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.size_bytes += bytes.len() as u64;
        if self.size_bytes > self.limit.bytes {
            return Err(Error::TooLarge { limit_bytes: self.limit.bytes, setting: self.limit.setting });
        }
        self.hasher.update(bytes);
        self.file.write_all(bytes).await.map_err(|error| Error::from_io(&self.folder, &error))
    }

    /// # Errors
    /// As [`Spool::create`].
    pub async fn finish(mut self) -> Result<Spooled, Error> {
        self.file.flush().await.map_err(|error| Error::from_io(&self.folder, &error))?;
        let digest = Digest::from_sha256(&self.hasher.finalize().into());
        Ok(Spooled { path: self.path, digest, size_bytes: self.size_bytes })
    }
}

impl Spooled {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_folder_that_cannot_be_used() {
        let folder = Path::new("/var/spool");
        let full = Error::from_io(folder, &io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.code(), ErrorCode::ResourceExhausted);
        assert!(full.to_string().contains("no room left in /var/spool"), "{full}");
        let unusable = Error::from_io(folder, &io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(unusable.code() == ErrorCode::Internal && unusable.to_string().contains("cache_dir"), "{unusable}");
    }
}
