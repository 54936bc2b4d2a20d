//! What lies in the cache, and how it leaves: only when somebody asks, since it is what offline use lives on.
//!
//! `<cache>/models--OWNER--NAME/<commit>/` is a snapshot, whole or as far as it came; `refs/<revision>` beside it names the commit
//! that a branch or tag led to when it was last asked for.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::repo::{RepoId, is_commit};
use crate::snapshot::{COMPLETE, LOCK, REFS};
use crate::{Error, Result};

/// A snapshot in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// `NAME` or `OWNER/NAME`.
    pub repo: String,
    pub commit: String,
    /// Branches and tags that led here when they were last asked for.
    pub revisions: Vec<String>,
    pub size_bytes: u64,
    /// When it was last asked for, or last grew.
    pub used_at: SystemTime,
    /// Not where fetching broke off; the next call goes on from there.
    pub is_complete: bool,
    folder: PathBuf,
}

/// All snapshots in a cache, those that were used last first. What is of no form of ours is left out, and never touched.
///
/// # Errors
/// A folder that cannot be read.
pub fn cached(cache: &Path) -> Result<Vec<Cached>> {
    let mut all = Vec::new();
    for (name, repo) in folders(cache)? {
        let Some(id) = name.strip_prefix("models--") else { continue };
        // No owner on the hub has `--` in its name.
        let id = id.replacen("--", "/", 1);
        let references = references(&repo)?;
        for (commit, folder) in folders(&repo)?.into_iter().filter(|(name, _)| is_commit(name)) {
            let revisions = references.iter().filter(|(_, to)| *to == commit).map(|(from, _)| from.replace("--", "/"));
            let revisions = revisions.collect();
            let mut snapshot = Cached {
                repo: id.clone(),
                commit,
                revisions,
                size_bytes: 0,
                used_at: SystemTime::UNIX_EPOCH,
                is_complete: false,
                folder,
            };
            snapshot.look()?;
            all.push(snapshot);
        }
    }
    all.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.used_at));
    Ok(all)
}

impl Cached {
    /// What its files say.
    fn look(&mut self) -> Result<()> {
        for entry in fs::read_dir(&self.folder).map_err(Error::io(&self.folder))? {
            let entry = entry.map_err(Error::io(&self.folder))?;
            // It may be gone by now.
            let Ok(metadata) = entry.metadata() else { continue };
            self.size_bytes += metadata.len();
            self.is_complete |= entry.file_name() == COMPLETE;
            let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            self.used_at = self.used_at.max(written);
        }
        Ok(())
    }

    /// Whether it is of this repository, at whatever commit.
    pub fn is_of(&self, repo: &RepoId) -> bool {
        self.folder.parent().and_then(Path::file_name).is_some_and(|name| *name == *repo.folder())
    }

    /// Deletes it, unless somebody is fetching it; whether it is gone. Who reads its files then may lose them.
    ///
    /// # Errors
    /// The files cannot be deleted.
    pub fn remove(&self) -> Result<bool> {
        let lock = match File::create(self.folder.join(LOCK)) {
            Ok(lock) => lock,
            // Somebody else was faster.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(Error::io(&self.folder)(error)),
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(Error::io(&self.folder)(error)),
        }
        // First what says that it is whole: of what is left of it, should this break off, nothing is believed.
        match fs::remove_file(self.folder.join(COMPLETE)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(&self.folder)(error)),
            Ok(()) | Err(_) => {}
        }
        fs::remove_dir_all(&self.folder).map_err(Error::io(&self.folder))?;
        let Some(repo) = self.folder.parent() else { return Ok(true) };
        for (name, _) in references(repo)?.iter().filter(|(_, commit)| *commit == self.commit) {
            // It leads to nothing now; that is found out without it too.
            let _ = fs::remove_file(repo.join(REFS).join(name));
        }
        // With the last snapshot its repository goes: a folder that holds another is not removed.
        let _ = fs::remove_dir(repo.join(REFS));
        let _ = fs::remove_dir(repo);
        Ok(true)
    }
}

/// Names of revisions as they are in the cache, and the commits that they led to.
fn references(repo: &Path) -> Result<Vec<(String, String)>> {
    let folder = repo.join(REFS);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(&folder)(error)),
    };
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let commit = fs::read_to_string(entry.path()).ok()?.trim().to_owned();
        Some((entry.file_name().into_string().ok()?, commit))
    };
    let mut all: Vec<(String, String)> = entries.filter_map(read).collect();
    all.sort_unstable();
    Ok(all)
}

/// The folders in a folder, with their names; none where there is no such folder.
fn folders(parent: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(parent)(error)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io(parent))?;
        // A link leads out of the cache.
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if let Some(name) = entry.file_name().into_string().ok().filter(|_| is_folder) {
            all.push((name, entry.path()));
        }
    }
    all.sort_unstable();
    Ok(all)
}
