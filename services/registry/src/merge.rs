//! A version in its base's weights, registered as a base of its own.
//!
//! The mathematics and the folder are `tailor_merge`'s; `tailor_quant` gives the folder its identity, as for one that is brought.
//! It takes the base's size several times on disk, so one at a time is worked on. The base's manifest is created last: a caller
//! that leaves before that has changed nothing. That it has is looked at between two files: what writes to disk is never cut off,
//! and could otherwise write again what has just been cleared away.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use tailor_domain::{AdapterRef, BaseManifest, BaseName, FileRef, MergedFrom, QuantCode};
use tailor_merge::{MergeOptions, MergeReport, Stage, merge_folder};
use tailor_peft::Adapter;
use tailor_quant::{Float, QuantOptions, QuantReport, quantize_folder};
use tempfile::TempDir;
use tokio::sync::OwnedMutexGuard;

use crate::{Error, NewBase, Registry, Result};

/// A base that is to be made of a version and its own.
#[derive(Debug, Clone)]
pub struct Merging {
    pub from: AdapterRef,
    pub name: BaseName,
    /// Absent: the type that the base computes in.
    pub dtype: Option<Float>,
    pub quant: QuantCode,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Bytes.
    Fetching,
    /// Tensors.
    Working(Stage),
    /// Bytes.
    Storing,
}

/// Hears how far it is: done, of how many. False: nobody listens any more.
pub type Heard = Arc<dyn Fn(At, u64, u64) -> bool + Send + Sync>;

fn tell(heard: &Heard, at: At, done: u64, of: u64) -> Result<()> {
    if heard(at, done, of) { Ok(()) } else { Err(Error::Abandoned) }
}

/// What came of it.
#[derive(Debug)]
pub struct MergedBase {
    pub manifest: BaseManifest,
    /// Absent where the base had been made already.
    pub report: Option<MergeReport>,
}

/// Folders on their way, and who is at work on them.
struct Scratch {
    folder: TempDir,
    /// Locked as long as the process lives: without, the folder is one that a process left behind when it died.
    _held: File,
    _alone: OwnedMutexGuard<()>,
}

/// How such a folder's name begins, and the file in it that is locked.
const PREFIX: &str = "merge-";
const HELD: &str = "held";

impl Scratch {
    fn new(parent: &Path, alone: OwnedMutexGuard<()>) -> std::io::Result<Self> {
        fs::create_dir_all(parent)?;
        for entry in fs::read_dir(parent)?.flatten() {
            let is_one = entry.file_name().to_string_lossy().starts_with(PREFIX);
            let is_left = || File::open(entry.path().join(HELD)).is_ok_and(|held| held.try_lock().is_ok());
            if is_one && is_left() {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let held = File::create(folder.path().join(HELD))?;
        held.lock()?;
        Ok(Self { folder, _held: held, _alone: alone })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

impl Registry {
    /// # Errors
    /// [`Error::NotFound`]; [`Error::AlreadyExists`]: the name is another base's; [`Error::NotReady`]: the base has changed, or the
    /// version is not signed as it must be; [`Error::Merge`]; [`Error::Abandoned`]; [`Error::Store`].
    pub async fn merge(&self, wanted: &Merging, heard: &Heard) -> Result<MergedBase> {
        // Refused, or answered, before gigabytes are fetched.
        let known = self.find_base(&wanted.name).await?;
        let (version, adapter) = self.open_version(&wanted.from, &self.alone().await).await?;
        let base = self.base(&version.base).await?;
        if base.fingerprint != version.base_fingerprint {
            return Err(Error::NotReady {
                what: format!(
                    "base {} is {}, and {}@{} was made for {}",
                    base.name, base.fingerprint, version.adapter, version.version, version.base_fingerprint
                ),
                remedy: "merge a version that was made for it".into(),
            });
        }
        let from = MergedFrom {
            adapter: version.adapter.clone(),
            version: version.version,
            digest: version.digest(),
            base: base.name.clone(),
            base_fingerprint: base.fingerprint.clone(),
        };
        let compute = if base.dtype == "f32" { Float::F32 } else { Float::Bf16 };
        let dtype = wanted.dtype.unwrap_or(compute);
        let dtype_name = if dtype == Float::F32 { "f32" } else { "bf16" };
        if let Some(known) = known {
            let made = (known.merged_from.as_ref(), known.quant, known.dtype.as_str());
            if made == (Some(&from), wanted.quant, dtype_name) {
                return Ok(MergedBase { manifest: known, report: None });
            }
            return Err(Error::AlreadyExists {
                what: format!("base {} exists already and was not made so", known.name),
                remedy: "a base never changes: give another name".into(),
            });
        }

        let label = format!("{}@{}", version.adapter, version.version);
        let scratch = Arc::new(self.scratch(&label).await?);
        self.fetch(&base, &scratch.path("base"), heard).await?;
        let options = MergeOptions {
            compute,
            dtype,
            requantize: Some(wanted.quant).filter(|quant| *quant != QuantCode::None),
            ..MergeOptions::default()
        };
        let (report, identity) = put_together(&scratch, adapter, options, wanted.quant, heard)
            .await?
            .map_err(|source| not_merged(&label, source))?;
        let files = self.store_folder(&label, &scratch.path(MADE), heard).await?;
        let manifest = self
            .register_base(NewBase {
                name: wanted.name.clone(),
                fingerprint: identity.fingerprint,
                quant: wanted.quant,
                dtype: dtype_name.to_owned(),
                files,
                parameters: identity.parameters,
                merged_from: Some(from),
            })
            .await?;
        Ok(MergedBase { manifest, report: Some(report) })
    }

    async fn scratch(&self, label: &str) -> Result<Scratch> {
        let alone = self.merging.clone().lock_owned().await;
        let parent = self.spool_dir.clone();
        let made = tokio::task::spawn_blocking(move || Scratch::new(&parent, alone)).await;
        let made = made.map_err(|_| Error::Defect { problem: "a folder for a merge was not made".into() })?;
        made.map_err(|error| not_merged(label, local(&self.spool_dir, error)))
    }

    async fn fetch(&self, base: &BaseManifest, folder: &Path, heard: &Heard) -> Result<()> {
        let (mut done, all) = (0, base.size_bytes());
        for file in &base.files {
            tell(heard, At::Fetching, done, all)?;
            self.store.fetch_folder(std::slice::from_ref(file), folder).await?;
            done += file.size_bytes;
        }
        tell(heard, At::Fetching, done, all)
    }

    /// Every file of a folder as a blob.
    async fn store_folder(&self, label: &str, folder: &Path, heard: &Heard) -> Result<Vec<FileRef>> {
        let listed = fs::read_dir(folder).and_then(|entries| {
            let file = |entry: std::io::Result<fs::DirEntry>| {
                let entry = entry?;
                Ok((entry.path(), entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()))
            };
            entries.map(file).collect::<std::io::Result<Vec<_>>>()
        });
        let mut listed = listed.map_err(|error| not_merged(label, local(folder, error)))?;
        listed.sort();
        let (mut done, all) = (0, listed.iter().map(|(_, _, size)| size).sum());
        let mut files = Vec::with_capacity(listed.len());
        for (path, name, size_bytes) in listed {
            tell(heard, At::Storing, done, all)?;
            let digest = self.store.put_blob_file(&path).await?.digest;
            files.push(FileRef { name, digest, size_bytes });
            done += size_bytes;
        }
        tell(heard, At::Storing, done, all)?;
        Ok(files)
    }
}

fn not_merged(version: &str, source: tailor_merge::Error) -> Error {
    Error::Merge { version: version.to_owned(), source }
}

fn local(path: &Path, source: std::io::Error) -> tailor_merge::Error {
    tailor_merge::Error::Io { path: path.to_owned(), source }
}

/// The folder within the scratch that becomes the base.
const MADE: &str = "made";

/// Off the threads that answer calls.
async fn put_together(
    scratch: &Arc<Scratch>,
    adapter: Adapter,
    options: MergeOptions,
    quant: QuantCode,
    heard: &Heard,
) -> Result<tailor_merge::Result<(MergeReport, QuantReport)>> {
    let (scratch, heard) = (scratch.clone(), heard.clone());
    let work = move || {
        let [base, merged, made] = ["base", "merged", MADE].map(|name| scratch.path(name));
        let report = merge_folder(&base, &adapter, &merged, &options, &mut |at| {
            heard(At::Working(at.stage), at.done as u64, at.of as u64);
        })?;
        // What is in 4 bits already is taken as it is.
        let how = QuantOptions { code: quant, compute: options.compute_of_result(), ..QuantOptions::default() };
        let identity = quantize_folder(&merged, &made, &how, &mut |_| {})?;
        Ok((report, identity))
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Defect { problem: "a merge was not finished".into() })
}
