//! One revision's files in the cache: fetched where they are missing, verified, kept under their commit.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use futures::TryStreamExt as _;
use reqwest::{StatusCode, Url};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::{ATTEMPTS, chain};
use crate::files::{CONFIG, Checksum, INDEX, Listing, Sibling, shards};
use crate::repo::{RepoId, check_revision, is_commit};
use crate::{Error, Hub, Result};

/// The hub's answer for a revision is not larger; neither is what is read into memory of any small file.
const LONGEST_ANSWER: usize = 64 << 20;
/// Written last: with it, a folder is complete. Its time says when the snapshot was last asked for.
pub(crate) const COMPLETE: &str = ".complete";
pub(crate) const LOCK: &str = ".lock";
pub(crate) const REFS: &str = "refs";

/// A complete Hugging Face folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub folder: PathBuf,
    pub commit: String,
}

/// How far a snapshot is.
#[derive(Debug, Clone)]
pub struct Progress<'a> {
    pub file: &'a str,
    pub bytes_done: u64,
    /// As the hub states them.
    pub bytes_total: u64,
}

type Report<'a> = dyn FnMut(Progress<'_>) + Send + 'a;

impl Hub {
    /// The folder of a revision, from the cache if it is complete there.
    ///
    /// A commit that is in the cache is never asked for again; a branch or tag is, and its commit is remembered for
    /// offline use. Of two calls for one commit at once, in whatever processes, the second waits for the first.
    ///
    /// # Errors
    /// A revision that is none; a repository that is not there, needs a token or has no safetensors; a hub that does not
    /// answer; a file that is not what the hub says; a disk that is full. What was fetched stays.
    pub async fn snapshot(&self, repo: &RepoId, revision: &str, report: &mut Report<'_>) -> Result<Snapshot> {
        check_revision(revision)?;
        let cache = self.options.cache.join(repo.folder());
        let reference = cache.join(REFS).join(revision.replace('/', "--"));
        if is_commit(revision) || self.options.offline {
            let known = if is_commit(revision) { Some(revision.to_owned()) } else { read_text(&reference).await };
            let complete = known.filter(|commit| is_commit(commit) && is_complete(&cache.join(commit)));
            if let Some(commit) = complete {
                let folder = cache.join(&commit);
                touch(&folder);
                return Ok(Snapshot { folder, commit });
            }
            if self.options.offline {
                return Err(Error::Offline { what: format!("{repo} at {revision}") });
            }
        }
        let listing = self.listing(repo, revision).await?;
        let commit = listing.sha.clone();
        let folder = cache.join(&commit);
        if !is_complete(&folder) {
            let _alone = made_alone(&folder).await?;
            if !is_complete(&folder) {
                self.fill(repo, &listing, &folder, report).await?;
                write_text(&folder.join(COMPLETE), "").await?;
            }
        }
        touch(&folder);
        fs::create_dir_all(cache.join(REFS)).await.map_err(Error::io(&cache))?;
        write_text(&reference, &commit).await?;
        Ok(Snapshot { folder, commit })
    }

    async fn listing(&self, repo: &RepoId, revision: &str) -> Result<Listing> {
        let what = format!("{repo} at {revision}");
        let mut url = self.url(&["api", "models", repo.as_str(), "revision"])?;
        // One segment, as the hub wants it: refs%2Fpr%2F1.
        if let Ok(mut path) = url.path_segments_mut() {
            path.push(revision);
        }
        url.set_query(Some("blobs=true"));
        let bytes = self.read(&url, &what).await?;
        let listing: Listing = serde_json::from_slice(&bytes)
            .map_err(|error| Error::content(&what, format!("the hub's answer is not of its protocol: {error}")))?;
        if !is_commit(&listing.sha) {
            return Err(Error::content(what, format!("the hub names no commit: {:?}", listing.sha)));
        }
        Ok(listing)
    }

    async fn fill(&self, repo: &RepoId, listing: &Listing, folder: &Path, report: &mut Report<'_>) -> Result<()> {
        let mut wanted = listing.first_files(repo)?;
        // Small ones first: what is wrong with them shows before gigabytes travel.
        wanted.sort_by_key(|sibling| (sibling.name != CONFIG, sibling.size()));
        if let Some(index) = listing.find(INDEX) {
            if index.size().is_some_and(|size| size > LONGEST_ANSWER as u64) {
                return Err(Error::content(INDEX, format!("is longer than {LONGEST_ANSWER} bytes")));
            }
            let mut nothing = Tally { done: 0, total: index.size().unwrap_or_default() };
            self.fetch(repo, &listing.sha, index, folder, &mut nothing, report).await?;
            let path = folder.join(INDEX);
            for name in shards(&fs::read(&path).await.map_err(Error::io(&path))?)? {
                let problem = || Error::content(INDEX, format!("names {name}, which the repository does not have"));
                wanted.push(listing.find(&name).ok_or_else(problem)?.clone());
            }
        }
        let total = wanted.iter().filter_map(Sibling::size).sum();
        let mut tally = Tally { done: 0, total };
        for sibling in &wanted {
            self.fetch(repo, &listing.sha, sibling, folder, &mut tally, report).await?;
        }
        Ok(())
    }

    /// One file, verified; a `.part` beside it holds what is not yet all.
    async fn fetch(
        &self,
        repo: &RepoId,
        commit: &str,
        sibling: &Sibling,
        folder: &Path,
        tally: &mut Tally,
        report: &mut Report<'_>,
    ) -> Result<()> {
        let (path, part) = (folder.join(&sibling.name), folder.join(format!("{}.part", sibling.name)));
        let before = tally.done;
        if !path.exists() {
            let checksum = sibling.checksum()?;
            let url = self.url(&[repo.as_str(), "resolve", commit, &sibling.name])?;
            let what = format!("{repo}: {}", sibling.name);
            let mut attempt = 1;
            loop {
                let had = size_of(&part).await;
                let outcome = self.transfer(&url, &what, sibling, &part, tally, before, report).await;
                match outcome? {
                    End::Whole => break,
                    End::BrokeOff(_) if size_of(&part).await > had => attempt = 1,
                    End::BrokeOff(_) if attempt < ATTEMPTS => {
                        tokio::time::sleep(self.pause(attempt)).await;
                        attempt += 1;
                    }
                    End::BrokeOff(problem) => return Err(Error::Transfer { what, problem }),
                }
            }
            if let Err(error) = verify(&part, &checksum, sibling.size(), &what).await {
                // Going on from wrong bytes would never end well.
                fs::remove_file(&part).await.map_err(Error::io(&part))?;
                return Err(error);
            }
            fs::rename(&part, &path).await.map_err(Error::io(&path))?;
        }
        tally.done = before + size_of(&path).await;
        report(Progress { file: &sibling.name, bytes_done: tally.done, bytes_total: tally.total });
        Ok(())
    }

    /// Brings `part` to its full length, from where it ends.
    #[allow(clippy::too_many_arguments)] // one step of `fetch`, apart for its errors
    async fn transfer(
        &self,
        url: &Url,
        what: &str,
        sibling: &Sibling,
        part: &Path,
        tally: &mut Tally,
        before: u64,
        report: &mut Report<'_>,
    ) -> Result<End> {
        let have = size_of(part).await;
        if have > 0 && sibling.size() == Some(have) {
            return Ok(End::Whole);
        }
        let response = match self.get(url, what, have).await {
            Err(Error::Content { .. }) if have > 0 => {
                fs::remove_file(part).await.map_err(Error::io(part))?;
                self.get(url, what, 0).await?
            }
            other => other?,
        };
        // A server without ranges sends everything from the start.
        let resumed = response.status() == StatusCode::PARTIAL_CONTENT;
        let options = match resumed {
            true => File::options().append(true).clone(),
            false => File::options().create(true).write(true).truncate(true).clone(),
        };
        let mut file = options.open(part).await.map_err(Error::io(part))?;
        let mut length = if resumed { have } else { 0 };
        let mut stream = response.bytes_stream();
        loop {
            let chunk = match stream.try_next().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    file.flush().await.map_err(Error::io(part))?;
                    return Ok(End::BrokeOff(format!("it broke off: {}", chain(&error))));
                }
            };
            length += chunk.len() as u64;
            if sibling.size().is_some_and(|size| length > size) {
                let problem =
                    format!("it is longer than the {} bytes that the hub states", sibling.size().unwrap_or(0));
                return Err(Error::content(what, problem));
            }
            file.write_all(&chunk).await.map_err(Error::io(part))?;
            tally.done = before + length;
            report(Progress { file: &sibling.name, bytes_done: tally.done, bytes_total: tally.total });
        }
        file.flush().await.map_err(Error::io(part))?;
        file.sync_all().await.map_err(Error::io(part))?;
        match sibling.size() {
            Some(size) if length < size => Ok(End::BrokeOff(format!("it ended after {length} of {size} bytes"))),
            _ => Ok(End::Whole),
        }
    }

    async fn read(&self, url: &Url, what: &str) -> Result<Vec<u8>> {
        let mut stream = self.get(url, what, 0).await?.bytes_stream();
        let mut bytes = Vec::new();
        let broke_off = |error: reqwest::Error| Error::Transfer {
            what: what.to_owned(),
            problem: format!("it broke off: {error}"),
        };
        while let Some(chunk) = stream.try_next().await.map_err(broke_off)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > LONGEST_ANSWER {
                return Err(Error::content(what, format!("the hub's answer is longer than {LONGEST_ANSWER} bytes")));
            }
        }
        Ok(bytes)
    }
}

/// How a transfer ended that had begun.
enum End {
    Whole,
    BrokeOff(String),
}

struct Tally {
    done: u64,
    total: u64,
}

async fn verify(path: &Path, checksum: &Checksum, size: Option<u64>, what: &str) -> Result<()> {
    let length = size_of(path).await;
    if size.is_some_and(|size| size != length) {
        return Err(Error::content(what, format!("{length} bytes came, the hub states {}", size.unwrap_or_default())));
    }
    let mut file = File::open(path).await.map_err(Error::io(path))?;
    let (mut sha256, mut git) = (Sha256::new(), Sha1::new());
    git.update(format!("blob {length}\0"));
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let read = file.read(&mut buffer).await.map_err(Error::io(path))?;
        if read == 0 {
            break;
        }
        match checksum {
            Checksum::Sha256(_) => sha256.update(&buffer[..read]),
            Checksum::GitBlob(_) => git.update(&buffer[..read]),
        }
    }
    let (name, wanted, got) = match checksum {
        Checksum::Sha256(wanted) => ("SHA-256", wanted, format!("{:x}", sha256.finalize())),
        Checksum::GitBlob(wanted) => ("git object id", wanted, format!("{:x}", git.finalize())),
    };
    if got == *wanted {
        return Ok(());
    }
    let problem = format!("its {name} is {got}, the hub states {wanted}; it was thrown away, try again");
    Err(Error::content(what, problem))
}

fn is_complete(folder: &Path) -> bool {
    folder.join(COMPLETE).is_file()
}

/// Says that a snapshot was used now, for whoever clears the cache. One that cannot be written to says it to nobody.
fn touch(folder: &Path) {
    let touched = std::fs::File::open(folder.join(COMPLETE)).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(folder = %folder.display(), %error, "cannot say that a snapshot was used");
    }
}

/// Makes a folder and waits until nobody else has its lock.
async fn made_alone(folder: &Path) -> Result<std::fs::File> {
    loop {
        fs::create_dir_all(folder).await.map_err(Error::io(folder))?;
        let path = folder.join(LOCK);
        let held = lock(&path).await?;
        // Who had it before may have removed the folder, and the lock with it.
        if path.exists() {
            return Ok(held);
        }
    }
}

/// Waits until nobody else has the lock; it ends with the file.
async fn lock(path: &Path) -> Result<std::fs::File> {
    let at = path.to_owned();
    let locked = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::create(at)?;
        file.lock().map(|()| file)
    });
    locked.await.map_err(std::io::Error::other).flatten().map_err(Error::io(path))
}

async fn size_of(path: &Path) -> u64 {
    fs::metadata(path).await.map_or(0, |metadata| metadata.len())
}

async fn read_text(path: &Path) -> Option<String> {
    fs::read_to_string(path).await.ok().map(|text| text.trim().to_owned())
}

/// All of it or nothing, whoever else writes the same.
async fn write_text(path: &Path, text: &str) -> Result<()> {
    let (at, text) = (path.to_owned(), text.to_owned());
    let written = tokio::task::spawn_blocking(move || {
        let mut part = NamedTempFile::new_in(at.parent().unwrap_or(Path::new(".")))?;
        part.write_all(text.as_bytes())?;
        part.persist(&at)?;
        Ok(())
    });
    written.await.map_err(std::io::Error::other).flatten().map_err(Error::io(path))
}
