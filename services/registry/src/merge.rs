//! A version in its base's weights, registered as a base of its own.
//!
//! The mathematics and the folder are `tailor_merge`'s; `tailor_quant` gives the folder its identity, as for one that is brought.
//! It takes the sum's size twice on disk, so one at a time is worked on. The base's manifest is created last: before that nothing
//! has changed but that there are blobs which nobody names. Whether the caller has left is looked at between two tensors and two files.
//! What writes to disk is never cut off within one: it could write again what has just been cleared away.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tailor_domain::{AdapterManifest, AdapterRef, BaseManifest, BaseName, FileRef, MergedFrom, QuantCode};
use tailor_merge::{MergeOptions, MergeReport, Stage, merge_folder};
use tailor_peft::Adapter;
use tailor_quant::{Float, QuantOptions, QuantReport, quantize_folder};
use tempfile::TempDir;
use tokio::sync::OwnedMutexGuard;

use crate::{Error, NewBase, Registry, Result};

/// How often one that waits for its turn looks whether its caller is still there.
const LOOK: Duration = Duration::from_secs(1);
/// How a folder for one merge is called, and the file in it that is locked as long as the process lives.
const PREFIX: &str = "merge-";
const HELD: &str = "held";
/// The folders in it: the base, the sum, and what becomes the new base.
const BASE: &str = "base";
const MERGED: &str = "merged";
const MADE: &str = "made";

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

/// What is made of what.
struct Plan {
    version: Arc<AdapterManifest>,
    base: BaseManifest,
    from: MergedFrom,
    options: MergeOptions,
    name: BaseName,
    quant: QuantCode,
}

impl Plan {
    fn dtype(&self) -> &'static str {
        if self.options.dtype == Float::F32 { "f32" } else { "bf16" }
    }

    fn failed(&self, source: tailor_merge::Error) -> Error {
        match source {
            tailor_merge::Error::Stopped => Error::Abandoned,
            source => Error::Merge { version: format!("{}@{}", self.version.adapter, self.version.version), source },
        }
    }

    fn local(&self, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| self.failed(tailor_merge::Error::Io { path, source })
    }
}

/// Folders on their way, and who is at work on them.
struct Scratch {
    folder: TempDir,
    _held: File,
    _alone: OwnedMutexGuard<()>,
}

impl Scratch {
    fn new(parent: &Path, alone: OwnedMutexGuard<()>) -> std::io::Result<Self> {
        fs::create_dir_all(parent)?;
        clear(parent);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let held = File::create(folder.path().join(HELD))?;
        held.lock()?;
        Ok(Self { folder, _held: held, _alone: alone })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Removes what processes left behind when they died.
pub(crate) fn clear(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let is_one = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let is_left = || File::open(entry.path().join(HELD)).is_ok_and(|held| held.try_lock().is_ok());
        if is_one
            && is_left()
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(folder = %entry.path().display(), %error, "what a merge left behind was not removed");
        }
    }
}

impl Registry {
    /// # Errors
    /// [`Error::NotFound`]; [`Error::AlreadyExists`]: the name is another base's; [`Error::NotReady`]: the base has changed, or the
    /// version is not signed as it must be; [`Error::OverQuota`]: larger than a blob may be; [`Error::Merge`]; [`Error::Abandoned`];
    /// [`Error::Store`].
    pub async fn merge(&self, wanted: &Merging, heard: &Heard) -> Result<MergedBase> {
        let plan = self.plan(wanted).await?;
        if let Some(manifest) = self.made(&plan).await? {
            return Ok(MergedBase { manifest, report: None });
        }
        let mut turn = pin!(self.merging.clone().lock_owned());
        let alone = loop {
            tokio::select! {
                alone = &mut turn => break alone,
                () = tokio::time::sleep(LOOK) => tell(heard, At::Fetching, 0, plan.base.size_bytes())?,
            }
        };
        // Whoever was before may have made it.
        if let Some(manifest) = self.made(&plan).await? {
            return Ok(MergedBase { manifest, report: None });
        }
        let parent = self.spool_dir.clone();
        let scratch = off_the_threads(move || Scratch::new(&parent, alone)).await?;
        let scratch = Arc::new(scratch.map_err(plan.local(&self.spool_dir))?);
        let outcome = self.make(&plan, &scratch, heard).await;
        off_the_threads(move || drop(scratch)).await?;
        outcome
    }

    async fn plan(&self, wanted: &Merging) -> Result<Plan> {
        let version = self.trusted(&wanted.from).await?;
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
        let compute = if base.dtype == "f32" { Float::F32 } else { Float::Bf16 };
        let dtype = wanted.dtype.unwrap_or(compute);
        let whole = wanted.quant == QuantCode::None;
        let bytes = base.parameters.saturating_mul(if dtype == Float::F32 { 4 } else { 2 });
        let limit = self.blob_limit;
        if whole && bytes > limit.bytes {
            return Err(Error::OverQuota {
                what: format!("the sum takes {bytes} bytes, the limit is {} ({})", limit.bytes, limit.setting),
                remedy: "merge into bf16 or 4 bits, or raise the limit".into(),
            });
        }
        let from = MergedFrom {
            adapter: version.adapter.clone(),
            version: version.version,
            digest: version.digest(),
            base: base.name.clone(),
            base_fingerprint: base.fingerprint.clone(),
        };
        let requantize = Some(wanted.quant).filter(|_| !whole);
        let options = MergeOptions { compute, dtype, requantize, ..MergeOptions::default() };
        Ok(Plan { version, base, from, options, name: wanted.name.clone(), quant: wanted.quant })
    }

    /// The base, where it has been made.
    async fn made(&self, plan: &Plan) -> Result<Option<BaseManifest>> {
        let Some(known) = self.find_base(&plan.name).await? else { return Ok(None) };
        let made = (known.merged_from.as_ref(), known.quant, known.dtype.as_str());
        if made == (Some(&plan.from), plan.quant, plan.dtype()) {
            return Ok(Some(known));
        }
        Err(Error::AlreadyExists {
            what: format!("base {} exists already and was not made so", known.name),
            remedy: "a base never changes: give another name".into(),
        })
    }

    async fn make(&self, plan: &Plan, scratch: &Arc<Scratch>, heard: &Heard) -> Result<MergedBase> {
        self.fetch(&plan.base, &scratch.path(BASE), heard).await?;
        let adapter = self.open(&plan.version, &self.alone().await).await?;
        let (options, quant) = (plan.options.clone(), plan.quant);
        let (at_work, listener) = (scratch.clone(), heard.clone());
        let made = off_the_threads(move || put_together(&at_work, &adapter, &options, quant, &listener)).await?;
        let (report, identity) = made.map_err(|source| plan.failed(source))?;
        let files = self.store_folder(plan, &scratch.path(MADE), heard).await?;
        let base = NewBase {
            name: plan.name.clone(),
            fingerprint: identity.fingerprint,
            quant: plan.quant,
            dtype: plan.dtype().to_owned(),
            files,
            parameters: identity.parameters,
            merged_from: Some(plan.from.clone()),
        };
        let (manifest, created) = self.create_base(base).await?;
        Ok(MergedBase { manifest, report: Some(report).filter(|_| created) })
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

    /// Every file of a folder as a blob, by name. The largest goes first: the others lie there unnamed for the shorter.
    async fn store_folder(&self, plan: &Plan, folder: &Path, heard: &Heard) -> Result<Vec<FileRef>> {
        let from = folder.to_owned();
        let listed = off_the_threads(move || list(&from)).await?;
        let mut listed = listed.map_err(plan.local(folder))?;
        listed.sort_by_key(|(_, _, size)| std::cmp::Reverse(*size));
        let (mut done, all) = (0, listed.iter().map(|(_, _, size)| size).sum());
        let mut files = Vec::with_capacity(listed.len());
        for (path, name, size_bytes) in listed {
            tell(heard, At::Storing, done, all)?;
            let digest = self.store.put_blob_file(&path).await?.digest;
            files.push(FileRef { name, digest, size_bytes });
            done += size_bytes;
        }
        tell(heard, At::Storing, done, all)?;
        files.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(files)
    }
}

/// Files with their names and sizes.
fn list(folder: &Path) -> std::io::Result<Vec<(PathBuf, String, u64)>> {
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry?;
        Ok((entry.path(), entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()))
    };
    fs::read_dir(folder)?.map(file).collect()
}

fn put_together(
    scratch: &Scratch,
    adapter: &Adapter,
    options: &MergeOptions,
    quant: QuantCode,
    heard: &Heard,
) -> tailor_merge::Result<(MergeReport, QuantReport)> {
    let [base, merged, made] = [BASE, MERGED, MADE].map(|name| scratch.path(name));
    let report = merge_folder(&base, adapter, &merged, options, &mut |at| match heard(
        At::Working(at.stage),
        at.done as u64,
        at.of as u64,
    ) {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    })?;
    let removed = |folder: PathBuf| {
        fs::remove_dir_all(&folder).map_err(|source| tailor_merge::Error::Io { path: folder, source })
    };
    removed(base)?;
    // What is in 4 bits already is taken as it is.
    let how = QuantOptions { code: quant, compute: options.compute_of_result(), ..QuantOptions::default() };
    let identity = quantize_folder(&merged, &made, &how, &mut |_| {})?;
    removed(merged)?;
    Ok((report, identity))
}

/// What keeps a processor or a disk busy, off the threads that answer calls.
async fn off_the_threads<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Error::Defect { problem: "a merge was not finished".into() })
}
