//! Shards as the dataset service wrote them, in the cache on local disk. Rows are read from there batch by batch; a shard is
//! never in memory as a whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tailor_blobs::Store;
use tailor_domain::spec::Objective;
use tailor_domain::{Digest, Invalid};
use tailor_text::shard::{ShardFile, ShardKind, ShardLimits};
use tailor_train::{Examples, Shard};

use crate::error::{Error, Result};

/// Shards that stay for a job's next attempt, or for the next job on the same rows.
const KEPT: usize = 8;
const INDEX: &str = ".index";
/// How often a shard is fetched that leaves the cache before it is opened.
const TRIES: usize = 5;

/// `<cache>/shards/<sha256>`, each with its index beside it.
pub struct ShardCache {
    folder: PathBuf,
}

impl ShardCache {
    pub fn in_folder(cache_dir: &Path) -> Self {
        Self { folder: cache_dir.join("shards") }
    }

    /// Brings a shard to the cache, unless it is there, and opens it. Those that were used longest ago leave.
    ///
    /// # Errors
    /// The store does not give it; it is no shard; the disk is full.
    pub async fn open(&self, store: &Store, digest: &str) -> Result<ShardFile> {
        let digest = Digest::try_new(digest)?;
        let path = self.folder.join(digest.hex());
        let mut tries = 0;
        loop {
            // Only what is whole and has this digest ever gets this name.
            if !tokio::fs::try_exists(&path).await.unwrap_or(false) {
                store.fetch_blob_to(&digest, &path).await?;
            }
            let (folder, at) = (self.folder.clone(), path.clone());
            let opened = tokio::task::spawn_blocking(move || {
                let file = ShardFile::open(&at, ShardLimits::default());
                touch(&at);
                // Whoever has a file open keeps it, named or not.
                remove_oldest(&folder, KEPT);
                file
            });
            let opened = opened.await.map_err(|_| Error::DeviceGone)?;
            tries += 1;
            // Another job's shard has taken its place since it was looked at.
            let has_left = opened.is_err() && !tokio::fs::try_exists(&path).await.unwrap_or(true);
            if !has_left || tries == TRIES {
                return Ok(opened?);
            }
        }
    }
}

/// Says that a file was used now.
fn touch(path: &Path) {
    let touched = std::fs::File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::warn!(path = %path.display(), %error, "cannot say that a shard was used; it may leave the cache early");
    }
}

fn remove_oldest(folder: &Path, kept: usize) {
    let Ok(files) = std::fs::read_dir(folder) else { return };
    let is_shard = |path: &Path| path.file_name().is_some_and(|name| Digest::try_new(name.to_string_lossy()).is_ok());
    let mut shards: Vec<(SystemTime, PathBuf)> = files
        .filter_map(|file| file.ok())
        .filter(|file| is_shard(&file.path()))
        .filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path())))
        .collect();
    shards.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
    for (_, path) in shards.into_iter().skip(kept) {
        let mut index = path.clone().into_os_string();
        index.push(INDEX);
        for gone in [path, PathBuf::from(index)] {
            // Somebody else may have been faster.
            let _ = std::fs::remove_file(gone);
        }
    }
}

/// The rows to train on, if they are those that the objective learns from.
pub fn learnable(file: ShardFile, digest: &str, objective: Objective) -> Result<Examples<'static>> {
    let fits = match (file.kind(), objective) {
        (ShardKind::Decoder | ShardKind::EncoderDecoder, Objective::Sft) => true,
        (ShardKind::DecoderPreferences | ShardKind::EncoderDecoderPreferences, Objective::Dpo) => true,
        (ShardKind::Prompts, _) | (_, Objective::Sft | Objective::Dpo) => false,
    };
    if !fits {
        let problem = format!("names a shard of other rows than {objective} learns from");
        return Err(Invalid::new("train_digest", problem).into());
    }
    Ok(Shard::new(file, digest)?.into())
}

/// The held-out prompts, in the order of their rows.
#[derive(Debug)]
pub struct HeldOut {
    pub file: Arc<ShardFile>,
    /// How many of them, from the first on, are asked.
    pub count: usize,
}

impl HeldOut {
    /// The first `limit`; all where it is 0.
    ///
    /// # Errors
    /// The shard holds targets.
    pub fn of(file: ShardFile, limit: usize) -> Result<Self> {
        if file.kind() != ShardKind::Prompts {
            let problem = "names a shard with targets; held-out rows must hide them";
            return Err(Invalid::new("validation_digest", problem).into());
        }
        let count = if limit == 0 { file.rows() } else { file.rows().min(limit) };
        Ok(Self { file: Arc::new(file), count })
    }

    pub fn len(&self) -> usize {
        self.count
    }

    /// Which rows of the validation split they are; rows that are too long are not in the shard.
    ///
    /// # Errors
    /// The file cannot be read any more.
    pub fn rows(&self) -> Result<Vec<u32>> {
        Ok((0..self.count).map(|at| Ok(self.file.read(at)?.row)).collect::<tailor_text::Result<_>>()?)
    }
}

#[cfg(test)]
mod tests {
    use tailor_text::shard::{Content, Record, ShardWriter};
    use tailor_text::{Example, Preference};

    use super::*;

    fn shard(kind: ShardKind, contents: Vec<Content>) -> Vec<u8> {
        let mut writer = ShardWriter::new(Vec::new(), kind, 10).expect("writes");
        for (row, content) in (3..).zip(contents) {
            writer.push(&Record { row, content }).expect("a record");
        }
        writer.finish().expect("writes")
    }

    fn example(answer: u32) -> Example {
        Example::Decoder { ids: vec![1, answer], in_loss: vec![false, true] }
    }

    fn folder() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("tailor-shards-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&folder).expect("a folder");
        folder
    }

    #[tokio::test]
    async fn each_reader_takes_its_own_rows_and_no_others() {
        let (store, folder) = (Store::memory(), folder());
        let cache = ShardCache::in_folder(&folder);
        let pair = Preference { chosen: example(2), rejected: example(3) };
        let put = async |kind, content| {
            let digest = store.put_blob(shard(kind, vec![content])).await.expect("stored").to_string();
            (cache.open(&store, &digest).await.expect("opens"), digest)
        };
        for objective in [Objective::Sft, Objective::Dpo] {
            let (rows, digest) = put(ShardKind::Decoder, Content::Example(example(2))).await;
            assert_eq!(learnable(rows, &digest, objective).is_ok(), objective == Objective::Sft);
            let (pairs, digest) = put(ShardKind::DecoderPreferences, Content::Preference(pair.clone())).await;
            assert_eq!(learnable(pairs, &digest, objective).is_ok(), objective == Objective::Dpo);
            let (prompts, digest) = put(ShardKind::Prompts, Content::Prompt(vec![1])).await;
            assert!(learnable(prompts, &digest, objective).is_err());
        }
        let (prompts, _) = put(ShardKind::Prompts, Content::Prompt(vec![1])).await;
        assert_eq!(HeldOut::of(prompts, 0).expect("prompts").rows().expect("reads"), [3]);
        let (rows, _) = put(ShardKind::Decoder, Content::Example(example(2))).await;
        let error = HeldOut::of(rows, 0).expect_err("held-out rows must hide their targets").to_string();
        assert!(error.contains("must hide"), "{error}");
        std::fs::remove_dir_all(folder).expect("removed");
    }

    /// More jobs than the cache has places for, each of which finds its shard named and gone a moment later.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn jobs_that_take_each_others_places_open_their_shards_all_the_same() {
        let (store, folder) = (Store::memory(), folder());
        let mut digests = Vec::new();
        for id in 0..3 * KEPT as u32 {
            let content = Content::Prompt(vec![id % 10, id / 10]);
            digests.push(store.put_blob(shard(ShardKind::Prompts, vec![content])).await.expect("stored").to_string());
        }
        let jobs = (0..4).map(|job| {
            let (store, folder, digests) = (store.clone(), folder.clone(), digests.clone());
            tokio::spawn(async move {
                let cache = ShardCache::in_folder(&folder);
                for at in 0..60 {
                    let digest = &digests[(at * (2 * job + 1) + 5 * job) % digests.len()];
                    assert_eq!(cache.open(&store, digest).await.expect("opens").rows(), 1);
                }
            })
        });
        for job in jobs.collect::<Vec<_>>() {
            job.await.expect("all open");
        }
        std::fs::remove_dir_all(folder).expect("removed");
    }

    #[tokio::test]
    async fn the_cache_keeps_what_was_used_last_and_fetches_the_rest_again() {
        let (store, folder) = (Store::memory(), folder());
        let cache = ShardCache::in_folder(&folder);
        let mut digests = Vec::new();
        for id in 0..KEPT as u32 + 2 {
            let digest = store.put_blob(shard(ShardKind::Prompts, vec![Content::Prompt(vec![id % 10, id / 10])])).await;
            digests.push(digest.expect("stored").to_string());
        }
        let first = cache.open(&store, &digests[0]).await.expect("opens");
        for digest in &digests[1..] {
            cache.open(&store, digest).await.expect("opens");
            // Times of files are coarse on some systems.
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let count = || std::fs::read_dir(folder.join("shards")).expect("read").count();
        assert_eq!(count(), 2 * KEPT, "each with its index");
        assert_eq!(first.read(0).expect("an open file stays").row, 3);
        assert_eq!(cache.open(&store, &digests[0]).await.expect("fetched again").rows(), 1);
        assert_eq!(count(), 2 * KEPT);
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
