//! A Hugging Face folder in, a folder in bitsandbytes' layout out, one tensor in memory at a time: while one is digested
//! and quantised on all cores, the one before it is written.

use std::fs;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use serde_json::{Map, Value, json};
use tailor_domain::{Digest, Family, QuantCode};

use crate::checkpoint::{read_bounded, state_key};
use crate::fingerprint::{Fingerprint, content};
use crate::{Backend, BlockSize, Checkpoint, Code, Error, Float, Quantized, Result, Scales, TensorRef, quantize_bytes};

mod rules;
mod writer;

use rules::Rules;
use writer::{Slot, Writer};

/// Largest config.json or tokenizer file read.
const MAX_TEXT_BYTES: u64 = 256 << 20;

/// Files copied unchanged when the source has them. Names are never taken from content.
const COPIED: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "LICENSE",
];

/// The files of [`COPIED`] that make a tokenizer.
const TOKENIZER: [&str; 7] = [
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];

/// How to quantise a folder.
#[derive(Debug, Clone)]
pub struct QuantOptions {
    pub code: QuantCode,
    pub blocksize: BlockSize,
    pub backend: Backend,
    /// Type in which bitsandbytes is told to compute: `bf16` or `f32`.
    pub compute: Float,
}

impl Default for QuantOptions {
    fn default() -> Self {
        Self { code: QuantCode::Nf4, blocksize: BlockSize::DEFAULT, backend: Backend::default(), compute: Float::Bf16 }
    }
}

impl QuantOptions {
    /// What the fingerprint says about the coding. The type of the arithmetic is part of it: it is written into the
    /// folder and changes every answer.
    pub fn coding(&self) -> String {
        format!("{} {} {:?} {}", self.code.as_str(), self.blocksize.get(), self.backend, self.compute.as_str())
    }

    fn code(&self) -> Option<(Code, bool)> {
        match self.code {
            QuantCode::Nf4 => Some((Code::Nf4, true)),
            QuantCode::Nf4Single => Some((Code::Nf4, false)),
            QuantCode::Fp4 => Some((Code::Fp4, false)),
            QuantCode::Uniform4 => Some((Code::Uniform4, false)),
            QuantCode::None => None,
        }
    }
}

/// How far the work is, after each tensor.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    pub tensor: &'a str,
    pub done: usize,
    pub of: usize,
    pub bytes_read: u64,
    pub bytes_total: u64,
}

/// What was made.
#[derive(Debug, Clone)]
pub struct QuantReport {
    pub fingerprint: Digest,
    pub family: Family,
    pub model_type: String,
    /// What the folder is in: what was asked for, or what a source in 4 bits was in already.
    pub code: QuantCode,
    /// Parameters of the source.
    pub parameters: u64,
    /// Weights now in 4 bits.
    pub quantized: usize,
    pub source_bytes: u64,
    pub bytes: u64,
}

/// Quantises the linear weights of `source` into the new or empty folder `target`; the rest is copied.
///
/// A source that bitsandbytes already quantised, or [`QuantCode::None`], is copied as it is. A target that was left
/// unfinished has no `config.json`: that is written last.
///
/// # Errors
/// An unsupported `model_type`, a tensor that is missing, not finite or of a type that is not a float, a full disk, a
/// target that is not empty.
pub fn quantize_folder(
    source: &Path,
    target: &Path,
    options: &QuantOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<QuantReport> {
    let (config_bytes, tokenizer_bytes) = identity_files(source)?;
    let config_path = source.join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&config_bytes)
        .map_err(|error| Error::file(&config_path, format!("not a JSON object: {error}")))?;
    let rules = Rules::of(&config).map_err(|problem| Error::file(&config_path, problem))?;
    let checkpoint = Checkpoint::open(source)?;
    let code = if config.contains_key("quantization_config") { None } else { options.code() };
    prepare_target(target)?;

    let names: Vec<&str> = checkpoint.names().collect();
    let mut report = QuantReport {
        fingerprint: Digest::of(b""),
        family: rules.family(),
        model_type: rules.model_type().to_owned(),
        code: if code.is_some() { options.code } else { code_of(&checkpoint)? },
        parameters: 0,
        quantized: 0,
        source_bytes: 0,
        bytes: 0,
    };
    let coding = |name: &str, tensor: &TensorRef| code.filter(|_| rules.quantizes(name) && tensor.shape.len() == 2);
    let mut slots = Vec::new();
    let mut bytes_total = 0;
    for name in &names {
        let tensor = checkpoint.tensor(name)?;
        bytes_total += tensor.bytes.len() as u64;
        slots.extend(Slot::of(name, &tensor, coding(name, &tensor), options.blocksize.get()));
    }
    report.parameters = checkpoint.parameters()?;

    let weights = target.join("model.safetensors");
    let mut writer = Writer::create(&weights, slots)?;
    let mut fingerprint = Fingerprint::new(&config_bytes, &tokenizer_bytes, &options.coding());
    std::thread::scope(|scope| -> Result<()> {
        // One tensor waits at most: the writer is never far behind.
        let (send, receive) = sync_channel::<Result<Ready<'_>>>(1);
        let (checkpoint, names) = (&checkpoint, &names);
        scope.spawn(move || {
            for name in names {
                let ready = Ready::make(checkpoint, name, coding, options);
                let stop = ready.is_err();
                if send.send(ready).is_err() || stop {
                    return;
                }
            }
        });
        for (done, ready) in receive.into_iter().enumerate() {
            let Ready { name, tensor, content, weight } = ready?;
            fingerprint.tensor(name, &tensor, &content);
            match weight {
                None => writer.put(name, &tensor.bytes)?,
                Some(weight) => {
                    put_quantized(&mut writer, name, &weight)?;
                    report.quantized += 1;
                }
            }
            tensor.bytes.evict();
            report.source_bytes += tensor.bytes.len() as u64;
            progress(Progress {
                tensor: name,
                done: done + 1,
                of: names.len(),
                bytes_read: report.source_bytes,
                bytes_total,
            });
        }
        Ok(())
    })?;
    if code.is_some() && report.quantized == 0 {
        return Err(Error::file(source, format!("no linear weight of a {} model found", rules.model_type())));
    }
    report.bytes = writer.finish()?;
    report.fingerprint = fingerprint.finish();

    for name in COPIED {
        let from = source.join(name);
        if from.is_file() {
            fs::copy(&from, target.join(name)).map_err(Error::io(&target.join(name)))?;
        }
    }
    if let Some((code, double)) = code {
        config.insert("quantization_config".into(), quantization_config(code, double, options, &rules));
    }
    let text = serde_json::to_string_pretty(&config).map_err(|error| Error::file(&config_path, error.to_string()))?;
    let path = target.join("config.json");
    fs::write(&path, text + "\n").map_err(Error::io(&path))?;
    Ok(report)
}

/// What a folder that is copied as it is has its weights in: that of its first one in 4 bits.
fn code_of(checkpoint: &Checkpoint) -> Result<QuantCode> {
    for name in checkpoint.names() {
        let Some(weight) = checkpoint.quantized(name)? else { continue };
        return Ok(match (weight.code(), weight.scales()) {
            (Code::Nf4, Scales::Nested { .. }) => QuantCode::Nf4,
            (Code::Nf4, _) => QuantCode::Nf4Single,
            (Code::Fp4, _) => QuantCode::Fp4,
            (Code::Uniform4, _) => QuantCode::Uniform4,
        });
    }
    Ok(QuantCode::None)
}

/// A tensor that only has to be written.
struct Ready<'a> {
    name: &'a str,
    tensor: TensorRef,
    content: [u8; 32],
    weight: Option<Quantized>,
}

impl<'a> Ready<'a> {
    fn make(
        checkpoint: &Checkpoint,
        name: &'a str,
        coding: impl Fn(&str, &TensorRef) -> Option<(Code, bool)>,
        options: &QuantOptions,
    ) -> Result<Self> {
        let tensor = checkpoint.tensor(name)?;
        let Some((code, double)) = coding(name, &tensor) else {
            if let Some(at) = tensor.float().and_then(|float| float.first_not_finite(&tensor.bytes)) {
                let problem = format!("value {at} is not finite; a model with it answers with nothing but such values");
                return Err(checkpoint.tensor_error(name, problem));
            }
            let content = content(&tensor);
            return Ok(Self { name, tensor, content, weight: None });
        };
        let dtype = tensor
            .float()
            .ok_or_else(|| checkpoint.tensor_error(name, format!("type {:?} is no float", tensor.dtype)))?;
        let quantize = || {
            let (blocksize, backend) = (options.blocksize, options.backend);
            quantize_bytes(&tensor.bytes, &tensor.shape, dtype, code, blocksize, double, backend)
        };
        let (content, weight) = rayon::join(|| content(&tensor), quantize);
        let weight = weight.map_err(|error| checkpoint.tensor_error(name, error.to_string()))?;
        Ok(Self { name, tensor, content, weight: Some(weight) })
    }
}

fn put_quantized(writer: &mut Writer, name: &str, weight: &Quantized) -> Result<()> {
    let floats = |values: &[f32]| bytemuck::cast_slice::<f32, u8>(values).to_vec();
    writer.put(name, weight.packed())?;
    match weight.scales() {
        Scales::Single(absmax) => writer.put(&format!("{name}.absmax"), &floats(absmax))?,
        Scales::Nested { codes, map, absmax, .. } => {
            writer.put(&format!("{name}.absmax"), codes)?;
            writer.put(&format!("{name}.nested_absmax"), &floats(absmax))?;
            writer.put(&format!("{name}.nested_quant_map"), &floats(map.as_slice()))?;
        }
        Scales::Affine { width, minimum } => {
            writer.put(&format!("{name}.width"), &floats(width))?;
            writer.put(&format!("{name}.minimum"), &floats(minimum))?;
        }
    }
    if weight.code() != Code::Uniform4 {
        writer.put(&format!("{name}.quant_map"), &floats(weight.values()))?;
    }
    writer.put(&state_key(name, weight.code()), &weight.state().encode())
}

fn quantization_config(code: Code, double: bool, options: &QuantOptions, rules: &Rules) -> Value {
    if code == Code::Uniform4 {
        return json!({ "quant_method": "tailor", "code": "uniform4", "blocksize": options.blocksize.get() });
    }
    json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": true,
        "load_in_8bit": false,
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_quant_type": code.as_str(),
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": options.compute.as_str(),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": rules.skipped(),
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_threshold": 6.0,
    })
}

/// The bytes of `config.json`, and of every file that decides how text becomes tokens: each that the folder has, after its
/// name and length.
pub(crate) fn identity_files(folder: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
    let config = read_bounded(&folder.join("config.json"), MAX_TEXT_BYTES)?;
    let mut tokenizer = Vec::new();
    for name in TOKENIZER {
        let path = folder.join(name);
        if path.exists() {
            let bytes = read_bounded(&path, MAX_TEXT_BYTES)?;
            tokenizer.extend(format!("{name} {}\n", bytes.len()).bytes());
            tokenizer.extend(bytes);
        }
    }
    Ok((config, tokenizer))
}

fn prepare_target(target: &Path) -> Result<()> {
    fs::create_dir_all(target).map_err(Error::io(target))?;
    let mut entries = fs::read_dir(target).map_err(Error::io(target))?;
    if entries.next().is_some() {
        return Err(Error::file(target, "folder is not empty; give a new one"));
    }
    Ok(())
}
