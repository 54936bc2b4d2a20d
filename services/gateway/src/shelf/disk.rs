//! Adapters' files on this machine's disk, by their own digests. Whatever is lost or damaged here is fetched again.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tailor_domain::Digest;

use super::worth::Worth;

pub struct Disk {
    folder: PathBuf,
    budget: u64,
    worth: Mutex<Worth>,
}

impl Disk {
    /// What earlier processes have left is taken over.
    pub fn open(folder: PathBuf, budget: u64) -> Self {
        let mut worth = Worth::default();
        for (digest, size_bytes) in left(&folder) {
            worth.insert(&digest, size_bytes, Duration::ZERO);
        }
        Self { folder, budget, worth: Mutex::new(worth) }
    }

    /// A blob, if it is here, whole, and of at most `limit_bytes`: what has grown beyond them is damaged, and is not read.
    pub async fn get(&self, digest: &Digest, limit_bytes: u64) -> Option<Vec<u8>> {
        let path = self.path(digest);
        let whole = if tokio::fs::metadata(&path).await.ok()?.len() <= limit_bytes {
            let (bytes, wanted) = (tokio::fs::read(&path).await.ok()?, digest.clone());
            tokio::task::spawn_blocking(move || (Digest::of(&bytes) == wanted).then_some(bytes)).await.ok()?
        } else {
            None
        };
        let mut worth = self.worth();
        match &whole {
            Some(_) => worth.touch(digest),
            None => {
                tracing::warn!(path = %path.display(), "a file of the adapters' cache is damaged; it is fetched again");
                worth.remove(digest);
            }
        }
        whole
    }

    /// Keeps a blob that took `cost` to fetch. Returns how many had to leave for it.
    pub async fn put(&self, digest: &Digest, bytes: &[u8], cost: Duration) -> u64 {
        if bytes.len() as u64 > self.budget {
            return 0;
        }
        if let Err(problem) = write(&self.folder, &self.path(digest), bytes).await {
            tracing::warn!(folder = %self.folder.display(), %problem, "the adapters' cache on disk cannot be written");
            return 0;
        }
        let leaving = {
            let mut worth = self.worth();
            worth.insert(digest, bytes.len() as u64, cost);
            let mut leaving = Vec::new();
            while worth.total_bytes() > self.budget
                && let Some(least) = worth.least(|other| other != digest)
            {
                worth.evict(&least);
                leaving.push(least);
            }
            leaving
        };
        for digest in &leaving {
            // Gone already is as good.
            let _ = tokio::fs::remove_file(self.path(digest)).await;
        }
        leaving.len() as u64
    }

    /// Blobs and their bytes.
    pub fn holds(&self) -> (u64, u64) {
        let worth = self.worth();
        (worth.digests().count() as u64, worth.total_bytes())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }

    fn worth(&self) -> MutexGuard<'_, Worth> {
        self.worth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whole files of earlier processes; what was being written goes.
fn left(folder: &Path) -> Vec<(Digest, u64)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let digest = entry.file_name().to_str().and_then(|name| Digest::try_new(format!("sha256:{name}")).ok());
        match (digest, entry.metadata()) {
            (Some(digest), Ok(metadata)) => found.push((metadata.modified().ok(), digest, metadata.len())),
            _ => drop(std::fs::remove_file(entry.path())),
        }
    }
    found.sort_by_key(|(modified, ..)| *modified);
    found.into_iter().map(|(_, digest, size_bytes)| (digest, size_bytes)).collect()
}

/// Only whole files ever have their name.
async fn write(folder: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    tokio::fs::create_dir_all(folder).await?;
    let since = Instant::now();
    let partial = path.with_extension(format!("{}-{:x}.part", std::process::id(), ulid::Ulid::new().random()));
    let written = async {
        tokio::fs::write(&partial, bytes).await?;
        tokio::fs::rename(&partial, path).await
    };
    let written = written.await;
    if written.is_err() {
        let _ = tokio::fs::remove_file(&partial).await;
    }
    tracing::debug!(path = %path.display(), bytes = bytes.len(), took = ?since.elapsed(), "kept on disk");
    written
}

#[cfg(test)]
mod tests {
    use tailor_testkit::TempDir;

    use super::*;

    async fn keep(disk: &Disk, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        disk.put(&digest, bytes, Duration::from_millis(10)).await;
        digest
    }

    #[tokio::test]
    async fn files_outlive_the_process_within_the_budget() {
        let folder = TempDir::new();
        let disk = Disk::open(folder.join("adapters"), 25);
        let first = keep(&disk, b"0123456789").await;
        let second = keep(&disk, b"abcdefghij").await;
        assert_eq!(disk.get(&second, 100).await.as_deref(), Some(&b"abcdefghij"[..]));
        let third = keep(&disk, b"ABCDEFGHIJ").await;
        assert_eq!((disk.get(&first, 100).await, disk.holds()), (None, (2, 20)), "the least used has left");
        std::fs::write(folder.join("adapters/half.part"), "ab").expect("a file that was being written");
        let again = Disk::open(folder.join("adapters"), 25);
        assert_eq!(again.holds(), (2, 20));
        assert_eq!(again.get(&third, 100).await.as_deref(), Some(&b"ABCDEFGHIJ"[..]));
        assert!(!folder.join("adapters/half.part").exists());
    }

    #[tokio::test]
    async fn a_damaged_file_is_none_and_one_larger_than_the_budget_is_not_kept() {
        let folder = TempDir::new();
        let disk = Disk::open(folder.join("adapters"), 25);
        let digest = keep(&disk, b"0123456789").await;
        std::fs::write(folder.join("adapters").join(digest.hex()), b"0123456780").expect("damages it");
        assert_eq!((disk.get(&digest, 100).await, disk.holds()), (None, (0, 0)));
        keep(&disk, &[0; 26]).await;
        assert_eq!(disk.holds(), (0, 0));
    }
}
