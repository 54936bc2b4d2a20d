//! An upload that broke off stays, under the digest that it will have, so that it can be gone on with.

use std::fs::{File as BlockingFile, Metadata};
use std::io::{self, Read as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use tailor_domain::Digest;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use super::{Error, Limit};

const ENDING: &str = "part";
/// How long it waits for the rest.
const KEPT: Duration = Duration::from_secs(24 * 3600);
const READ_AT_ONCE: usize = 1 << 20;

/// The beginning of a file whose digest was announced. Dropping it keeps it, so that it can be gone on with; nobody else writes
/// to it meanwhile.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    size_bytes: u64,
    limit: Limit,
    /// Beside another upload of the same file: nobody will go on with it, so it goes when it is dropped.
    apart: bool,
}

impl Partial {
    /// Opens what is there of the file, or begins it; while another upload writes it, begins a second one apart.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Unusable`].
    pub async fn open(folder: &Path, digest: &Digest, limit: Limit) -> Result<Self, Error> {
        let (folder, digest) = (folder.to_owned(), digest.clone());
        let opened = tokio::task::spawn_blocking(move || Self::open_now(&folder, &digest, limit)).await;
        opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    fn open_now(folder: &Path, digest: &Digest, limit: Limit) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::from_io(folder, &error);
        std::fs::create_dir_all(folder).map_err(failed)?;
        forget_old(folder);
        let path = place(folder, digest);
        let mut file = loop {
            let file = BlockingFile::options().read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(failed)?;
            match file.try_lock() {
                // Whoever had it may have forgotten it in between: then it has this name no more.
                Ok(()) if is_at(&file, &path) => break file,
                Ok(()) => {}
                Err(std::fs::TryLockError::WouldBlock) => return Self::apart(folder, limit),
                Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
            }
        };
        let (mut hasher, mut size_bytes) = (Sha256::new(), 0);
        let mut buffer = vec![0; READ_AT_ONCE];
        loop {
            let count = file.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            size_bytes += count as u64;
        }
        Ok(Self { path, file: File::from_std(file), hasher, size_bytes, limit, apart: false })
    }

    fn apart(folder: &Path, limit: Limit) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::from_io(folder, &error);
        let file = tempfile::Builder::new().suffix(&format!(".{ENDING}")).tempfile_in(folder).map_err(failed)?;
        let (file, path) = file.keep().map_err(|error| failed(error.error))?;
        Ok(Self { path, file: File::from_std(file), hasher: Sha256::new(), size_bytes: 0, limit, apart: true })
    }

    /// Bytes of the file that are here.
    pub async fn length(folder: &Path, digest: &Digest) -> u64 {
        tokio::fs::metadata(place(folder, digest)).await.map_or(0, |found| found.len())
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Begins anew.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn restart(&mut self) -> Result<(), Error> {
        let failed = |error: io::Error| Error::from_io(&self.path, &error);
        self.file.set_len(0).await.map_err(failed)?;
        self.file.seek(SeekFrom::Start(0)).await.map_err(failed)?;
        (self.hasher, self.size_bytes) = (Sha256::new(), 0);
        Ok(())
    }

    /// # Errors
    /// As [`Self::open`]; [`Error::TooLarge`] before a byte above the limit is written.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.size_bytes + bytes.len() as u64 > self.limit.bytes {
            return Err(Error::TooLarge { limit_bytes: self.limit.bytes, setting: self.limit.setting });
        }
        self.file.write_all(bytes).await.map_err(|error| Error::from_io(&self.path, &error))?;
        // Only what was written counts, so that a disk that was full leaves a file that can be gone on with.
        self.hasher.update(bytes);
        self.size_bytes += bytes.len() as u64;
        Ok(())
    }

    /// The digest of all that is here.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn digest(&mut self) -> Result<Digest, Error> {
        self.file.flush().await.map_err(|error| Error::from_io(&self.path, &error))?;
        Ok(Digest::from_sha256(&self.hasher.clone().finalize().into()))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Deletes it: it is stored, or it is not what was announced.
    pub fn forget(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.apart {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn is_at(file: &BlockingFile, path: &Path) -> bool {
    let same = |a: Metadata, b: Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    file.metadata().ok().zip(path.metadata().ok()).is_some_and(|(own, there)| same(own, there))
}

fn place(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join(format!("{}.{ENDING}", digest.hex()))
}

/// Deletes what nobody has gone on with for long.
fn forget_old(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().extension().is_some_and(|ending| ending == ENDING)) {
        let modified = entry.metadata().and_then(|found| found.modified());
        let is_old = modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > KEPT));
        if is_old {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
