//! The merged folder on disk: planned, written beside its place, measured, and put there by one rename.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Map, Value};
use tailor_domain::QuantCode;
use tailor_peft::Adapter;
use tailor_quant::{Checkpoint, Float, QuantOptions, quantize_folder};

use crate::plan::Plan;
use crate::shards::{self, ShardWriter};
use crate::weight::{Opened, Source, Weight, encode};
use crate::{Difference, Error, Result};

/// Values of a tensor that are in memory at once, in f32 and as they are written.
const VALUES_AT_ONCE: usize = 1 << 22;
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// How to merge.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// The type that the base computes in: its weights are rounded to it first, as where the adapter was trained.
    pub compute: Float,
    /// The type of what is written, or of what is quantised again.
    pub dtype: Float,
    /// Largest tensor file; one tensor alone may be larger.
    pub shard_bytes: u64,
    /// Put the linear weights in 4 bits again.
    pub requantize: Option<QuantCode>,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self { compute: Float::Bf16, dtype: Float::Bf16, shard_bytes: 5_000_000_000, requantize: None }
    }
}

impl MergeOptions {
    /// The type in which what is made computes.
    pub fn compute_of_result(&self) -> Float {
        if self.dtype == Float::F32 { Float::F32 } else { Float::Bf16 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Merging,
    Quantising,
    /// What was quantised is read back.
    Comparing,
}

/// How far one stage is, after each tensor.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    pub stage: Stage,
    pub done: usize,
    pub of: usize,
}

/// What was made, and how far it is from base and adapter.
#[derive(Debug, Clone)]
pub struct MergeReport {
    pub parameters: u64,
    /// Of all files that hold tensors.
    pub bytes: u64,
    /// How many those are.
    pub files: usize,
    pub tensors: usize,
    /// Whether a head that was the embedding is a tensor of its own now.
    pub untied: bool,
    /// What the adapter changes, by tensor.
    pub changed: Vec<(String, Difference)>,
    /// All that the adapter leaves alone.
    pub rest: Difference,
}

impl MergeReport {
    /// Everything that the adapter changes, together.
    pub fn difference(&self) -> Difference {
        let mut all = Difference::default();
        self.changed.iter().for_each(|(_, difference)| all.add(difference));
        all
    }

    /// The tensor whose update lost most to rounding.
    pub fn worst(&self) -> Option<&(String, Difference)> {
        let updated = self.changed.iter().filter(|(_, difference)| difference.has_update());
        updated.max_by(|a, b| a.1.error_of_update().total_cmp(&b.1.error_of_update()))
    }
}

/// Writes `base`, a Hugging Face folder, plain or in 4 bits, with `adapter` put into its weights to the new or empty folder
/// `target`. It is there whole or not at all. `progress` hears of each tensor, and may end the work.
///
/// # Errors
/// [`Error::Stopped`], if it does.
/// An adapter that does not fit, or that no folder of this architecture can express; a merged value that the type cannot
/// hold; a target that is not empty; a full disk.
pub fn merge_folder(
    base: &Path,
    adapter: &Adapter,
    target: &Path,
    options: &MergeOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<MergeReport> {
    let occupied = target.read_dir().map_or(target.exists(), |mut entries| entries.next().is_some());
    if occupied {
        return Err(Error::file(target, "exists and is not empty; give a new folder"));
    }
    let checkpoint = Checkpoint::open(base)?;
    let mut plan = Plan::new(&checkpoint, read_config(base)?, adapter, options.compute)?;
    set_dtype(&mut plan.config, options.dtype);

    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(Error::io(parent))?;
    let scratch = tempfile::tempdir_in(parent).map_err(Error::io(parent))?;
    let merged = scratch.path().join("merged");
    fs::create_dir(&merged).map_err(Error::io(&merged))?;
    let mut measured = write_weights(&plan, &merged, options, progress)?;
    copy_texts(base, &merged)?;
    let config = merged.join("config.json");
    fs::write(&config, format!("{:#}\n", Value::Object(plan.config.clone()))).map_err(Error::io(&config))?;

    let made = match options.requantize {
        None => merged,
        Some(code) => {
            let quantised = scratch.path().join("quantised");
            let how = QuantOptions { code, compute: options.compute_of_result(), ..QuantOptions::default() };
            quantize_folder(&merged, &quantised, &how, &mut |at| {
                // What quantises goes on to its end.
                let _ = progress(Progress { stage: Stage::Quantising, done: at.done, of: at.of });
            })?;
            fs::remove_dir_all(&merged).map_err(Error::io(&merged))?;
            measured = measure(&plan, &quantised, options, progress)?;
            quantised
        }
    };
    let (files, bytes) = tensor_files(&made)?;
    if target.exists() {
        fs::remove_dir(target).map_err(Error::io(target))?;
    }
    fs::rename(&made, target).map_err(Error::io(target))?;

    let is_changed = |name: &str| plan.weights.get(name).is_some_and(|weight| !weight.edit.is_none());
    let (changed, unchanged): (Vec<_>, Vec<_>) = measured.into_iter().partition(|(name, _)| is_changed(name));
    let mut rest = Difference::default();
    unchanged.iter().for_each(|(_, difference)| rest.add(difference));
    let parameters = plan.weights.values().map(|weight| weight.elements() as u64).sum();
    Ok(MergeReport { parameters, bytes, files, tensors: plan.weights.len(), untied: plan.untied, changed, rest })
}

/// By tensor.
type Measured = Vec<(String, Difference)>;

fn write_weights(
    plan: &Plan<'_>,
    folder: &Path,
    options: &MergeOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Measured> {
    let shards = shards::divide(plan.weights.values(), options.dtype, options.shard_bytes)?;
    let mut measured = Vec::new();
    for shard in &shards {
        let mut writer = ShardWriter::create(folder, shard, options.dtype)?;
        for weight in &shard.weights {
            let difference = write_weight(weight, &mut writer, options)?;
            measured.push((weight.name.clone(), difference));
            weight.source.evict();
            tell(progress, Stage::Merging, measured.len(), plan.weights.len())?;
        }
        writer.finish()?;
    }
    shards::write_index(folder, &shards, options.dtype)?;
    Ok(measured)
}

fn tell(progress: &mut dyn FnMut(Progress) -> ControlFlow<()>, stage: Stage, done: usize, of: usize) -> Result<()> {
    if progress(Progress { stage, done, of }).is_break() { Err(Error::Stopped) } else { Ok(()) }
}

fn write_weight(weight: &Weight<'_>, writer: &mut ShardWriter, options: &MergeOptions) -> Result<Difference> {
    let opened = weight.source.open();
    let mut all = Difference::default();
    for rows in row_groups(weight) {
        let written = weight.map_rows(&opened, rows, options.compute, |row, base, merged| {
            let written: Vec<f32> = merged.iter().map(|value| options.dtype.round(*value)).collect();
            check_finite(&weight.name, row, merged, &written, options.dtype)?;
            Ok((encode(options.dtype, &written), Difference::of(base, merged, &written)))
        })?;
        for (bytes, difference) in written {
            writer.put(&bytes)?;
            all.add(&difference);
        }
    }
    Ok(all)
}

fn row_groups(weight: &Weight<'_>) -> impl Iterator<Item = std::ops::Range<usize>> {
    let (rows, at_once) = (weight.rows(), (VALUES_AT_ONCE / weight.columns()).max(1));
    (0..rows).step_by(at_once).map(move |first| first..rows.min(first + at_once))
}

fn check_finite(name: &str, row: usize, merged: &[f32], written: &[f32], dtype: Float) -> Result<()> {
    let Some(at) = written.iter().position(|value| !value.is_finite()) else { return Ok(()) };
    let problem = match merged[at].is_finite() {
        true => format!("{} in row {row} is more than {} holds; merge into bf16 or f32", merged[at], dtype.as_str()),
        false => format!("row {row} is not finite once merged; with DoRA, a row of zeros has no direction"),
    };
    Err(Error::value(name, problem))
}

/// The same figures of a folder that was quantised again, read back from it.
fn measure(
    plan: &Plan<'_>,
    folder: &Path,
    options: &MergeOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Measured> {
    let written = Checkpoint::open(folder)?;
    let mut measured = Vec::new();
    for weight in plan.weights.values() {
        let (source, _) = Source::of(&written, &weight.name)?;
        let difference = compare(weight, &source.open(), options)?;
        measured.push((weight.name.clone(), difference));
        weight.source.evict();
        source.evict();
        tell(progress, Stage::Comparing, measured.len(), plan.weights.len())?;
    }
    Ok(measured)
}

fn compare(weight: &Weight<'_>, written: &Opened<'_>, options: &MergeOptions) -> Result<Difference> {
    let opened = weight.source.open();
    let mut all = Difference::default();
    for rows in row_groups(weight) {
        let differences = weight.map_rows(&opened, rows, options.compute, |row, base, merged| {
            let mut values = vec![0f32; merged.len()];
            written.read(row * merged.len(), &mut values);
            Ok(Difference::of(base, merged, &values))
        })?;
        differences.iter().for_each(|difference| all.add(difference));
    }
    Ok(all)
}

fn read_config(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join("config.json");
    let size = fs::metadata(&path).map_err(Error::io(&path))?.len();
    if size > MAX_CONFIG_BYTES {
        return Err(Error::file(&path, format!("{size} bytes; the limit is {MAX_CONFIG_BYTES}")));
    }
    let text = fs::read(&path).map_err(Error::io(&path))?;
    serde_json::from_slice(&text).map_err(|error| Error::file(&path, format!("not a JSON object: {error}")))
}

/// Under the name that the config has it by: `torch_dtype` before transformers 5.
fn set_dtype(config: &mut Map<String, Value>, dtype: Float) {
    let names: Vec<&str> = ["dtype", "torch_dtype"].into_iter().filter(|name| config.contains_key(*name)).collect();
    for name in if names.is_empty() { vec!["dtype"] } else { names } {
        config.insert(name.into(), dtype.as_str().into());
    }
}

/// Everything that goes with the weights and is none: the tokenizer's files, settings of generation, a licence.
fn copy_texts(base: &Path, target: &Path) -> Result<()> {
    for entry in fs::read_dir(base).map_err(Error::io(base))? {
        let path = entry.map_err(Error::io(base))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let is_text = [".json", ".jinja", ".model", ".txt"].iter().any(|ending| name.ends_with(ending));
        let is_ours = name == "config.json" || name.ends_with(".index.json");
        if path.is_file() && (is_text && !is_ours || name == "LICENSE") {
            let to = target.join(name);
            fs::copy(&path, &to).map_err(Error::io(&to))?;
        }
    }
    Ok(())
}

/// How many files hold tensors, and their bytes.
fn tensor_files(folder: &Path) -> Result<(usize, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        if entry.path().extension().is_some_and(|ending| ending == "safetensors") {
            files += 1;
            bytes += entry.metadata().map_err(Error::io(folder))?.len();
        }
    }
    Ok((files, bytes))
}
