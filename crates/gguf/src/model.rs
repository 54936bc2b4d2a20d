//! A plain Hugging Face folder as one GGUF file.

use std::path::Path;

use tailor_quant::{Checkpoint, Float};
use tailor_text::Tokenizer;

use crate::config::{DecoderConfig, MAX_CONFIG_BYTES, SERVE_FOLDER};
use crate::encode::{self, Source};
use crate::format::{TensorInfo, Value};
use crate::keys::{self, Metadata};
use crate::names::{Place, Turn};
use crate::writer::GgufWriter;
use crate::{Error, Result, rope, tokenizer};

const CONFIG_FILE: &str = "config.json";
const GENERATION_FILE: &str = "generation_config.json";

#[derive(Debug, Clone)]
pub struct ModelOptions {
    /// The type of matrices; vectors are f32, as llama.cpp computes with them.
    pub float: Float,
    /// `general.name`.
    pub name: String,
    /// More metadata, under names of one's own.
    pub extra: Vec<(String, Value)>,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self { float: Float::Bf16, name: String::new(), extra: Vec::new() }
    }
}

/// How far it is, after each tensor.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    pub done: usize,
    pub of: usize,
}

#[derive(Debug, Clone)]
pub struct ModelReport {
    /// `general.architecture`.
    pub architecture: &'static str,
    pub parameters: u64,
    pub tensors: usize,
    /// Of the file.
    pub bytes: u64,
    /// What llama.cpp does otherwise, whatever the file says.
    pub notes: Vec<String>,
}

/// One tensor of the file to be, and where its values are.
struct Planned {
    info: TensorInfo,
    from: From,
}

enum From {
    Folder { name: String, turn: Turn },
    Values(Vec<f32>),
}

/// Whether a model with this config.json can be written at all, before anything larger is fetched or made.
///
/// # Errors
/// As [`write_model`], by the config alone.
pub fn check_config(config: &[u8]) -> Result<()> {
    DecoderConfig::parse(config).map(|_| ())
}

/// As [`check_config`], for the tokenizer too. The folder's weights may be in any form.
///
/// # Errors
/// As [`write_model`], by everything but the weights.
pub fn check_texts(folder: &Path) -> Result<()> {
    let config = DecoderConfig::parse(&read(folder, CONFIG_FILE)?)?;
    let ends = ends(folder, &config)?;
    tokenizer::metadata(folder, &Tokenizer::open(folder)?, &config, &ends, &mut Vec::new()).map(|_| ())
}

/// Writes the plain Hugging Face folder `folder` to the new file `target`. It is there whole or not at all.
///
/// # Errors
/// What llama.cpp cannot express, by name; a folder in 4 bits; a value that the type cannot hold; a file that exists; a
/// full disk.
pub fn write_model(
    folder: &Path,
    target: &Path,
    options: &ModelOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<ModelReport> {
    let config = DecoderConfig::parse(&read(folder, CONFIG_FILE)?)?;
    let checkpoint = Checkpoint::open(folder)?;
    let tokenizer = Tokenizer::open(folder)?;
    let planned = plan(&config, &checkpoint, options.float)?;
    let mut notes = config.notes.clone();
    let mut metadata = keys::general("model", config.architecture, &options.name, options.float);
    metadata.extend(keys::hyperparameters(&config));
    let ends = ends(folder, &config)?;
    metadata.extend(tokenizer::metadata(folder, &tokenizer, &config, &ends, &mut notes)?);
    metadata.extend(options.extra.iter().cloned());
    check_keys(&metadata)?;

    let infos: Vec<TensorInfo> = planned.iter().map(|tensor| tensor.info.clone()).collect();
    let parameters = infos.iter().map(|info| info.shape.iter().product::<usize>() as u64).sum();
    let mut writer = GgufWriter::create(target, &metadata, infos)?;
    for (done, tensor) in planned.iter().enumerate() {
        match &tensor.from {
            From::Values(values) => {
                writer.put(&encode::encode(&tensor.info.name, values, tensor.info.float)?)?;
                writer.end_tensor()?;
            }
            From::Folder { name, turn } => {
                let found = checkpoint.tensor(name)?;
                let float = tensor_float(&checkpoint, name)?;
                let source = Source { name, shape: &found.shape, float, bytes: &found.bytes };
                encode::write(&mut writer, &source, *turn, tensor.info.float)?;
                found.bytes.evict();
            }
        }
        progress(Progress { done: done + 1, of: planned.len() });
    }
    let bytes = writer.finish()?;
    Ok(ModelReport { architecture: config.architecture.name(), parameters, tensors: planned.len(), bytes, notes })
}

fn plan(config: &DecoderConfig, checkpoint: &Checkpoint, float: Float) -> Result<Vec<Planned>> {
    if let Some(name) = checkpoint.names().find(|name| name.contains(".quant_state.")) {
        let problem = "the folder is in 4 bits, which GGUF codes otherwise";
        let remedy = "write bf16, and quantise the file with llama.cpp's llama-quantize";
        return Err(Error::not_mapped(name, problem, remedy));
    }
    if let Some(missing) = config.required().into_iter().find(|name| !checkpoint.contains(name)) {
        return Err(Error::file(checkpoint.folder(), format!("has no tensor {missing:?}, which the model needs")));
    }
    let mut planned = Vec::new();
    if let Some(factors) = rope::factors(&config.rotary, config.head_dim) {
        let info = TensorInfo { name: rope::NAME.to_owned(), shape: vec![factors.len()], float: Float::F32 };
        planned.push(Planned { info, from: From::Values(factors) });
    }
    for name in checkpoint.names() {
        let Some(Place { name: theirs, turn }) = config.place(name)? else { continue };
        let shape = checkpoint.tensor(name)?.shape;
        check_shape(config, name, &shape)?;
        tensor_float(checkpoint, name)?;
        let float = if shape.len() == 1 { Float::F32 } else { float };
        let info = TensorInfo { name: theirs, shape, float };
        planned.push(Planned { info, from: From::Folder { name: name.to_owned(), turn } });
    }
    planned.sort_by_cached_key(|tensor| order(&tensor.info.name));
    Ok(planned)
}

/// Embedding first, then the blocks by number, so that the file is read from front to back.
fn order(name: &str) -> (u8, u32, String) {
    let block =
        name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()).and_then(|number| number.parse().ok());
    let class = match block {
        Some(_) => 1,
        None if name.starts_with("output") => 2,
        None => 0,
    };
    (class, block.unwrap_or(0), name.to_owned())
}

/// llama.cpp reports a wrong shape only when it loads.
fn check_shape(config: &DecoderConfig, name: &str, shape: &[usize]) -> Result<()> {
    let (module, part) = name.rsplit_once('.').unwrap_or((name, ""));
    let (hidden, head_dim) = (config.hidden as usize, config.head_dim as usize);
    let expected = match (config.linear_shape(module), part) {
        (Some((inputs, outputs)), "weight") => vec![outputs, inputs],
        (Some((_, outputs)), _) => vec![outputs],
        (None, _) if module == "model.embed_tokens" => vec![config.vocab_size as usize, hidden],
        (None, _) if module.ends_with("_norm") && module.contains("self_attn") => vec![head_dim],
        (None, _) => vec![hidden],
    };
    match shape == expected {
        true => Ok(()),
        false => Err(Error::value(name, format!("shape {shape:?} where config.json makes it {expected:?}"))),
    }
}

fn tensor_float(checkpoint: &Checkpoint, name: &str) -> Result<Float> {
    let tensor = checkpoint.tensor(name)?;
    tensor.float().ok_or_else(|| {
        let problem = format!("type {:?}; F32, BF16 and F16 are written", tensor.dtype);
        Error::not_mapped(name, problem, SERVE_FOLDER)
    })
}

/// All tokens that end an answer, by config.json and generation_config.json.
fn ends(folder: &Path, config: &DecoderConfig) -> Result<Vec<u32>> {
    let mut ends = config.eos.clone();
    if folder.join(GENERATION_FILE).exists() {
        ends.extend(DecoderConfig::ends_of(&read(folder, GENERATION_FILE)?, GENERATION_FILE, config.vocab_size)?);
    }
    Ok(ends)
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>> {
    let path = folder.join(name);
    let found = std::fs::metadata(&path).map_err(Error::io(&path))?;
    if !found.is_file() || found.len() > MAX_CONFIG_BYTES {
        return Err(Error::file(&path, format!("is no regular file of at most {MAX_CONFIG_BYTES} bytes")));
    }
    std::fs::read(&path).map_err(Error::io(&path))
}

/// A key twice would be read as either.
fn check_keys(metadata: &Metadata) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    match metadata.iter().find(|(key, _)| !seen.insert(key.as_str())) {
        None => Ok(()),
        Some((key, _)) => {
            Err(Error::not_mapped(key, "this key of the metadata is there already", "give it another name"))
        }
    }
}
