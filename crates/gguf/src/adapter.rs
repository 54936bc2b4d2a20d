//! A LoRA adapter alone, for llama.cpp to put onto a GGUF file of its base (`--lora`).
//!
//! llama.cpp computes W·x + (α/r)·B·(A·x) with one α for the file and r from each B. So α is taken such that α/r is the
//! adapter's own scale, α/r or α/√r with rank-stabilised LoRA; in layers where one α cannot do that, for want of another
//! rank or scale, what is missing is multiplied into B. B's rows change places as those of the weight do.

use std::path::Path;

use tailor_peft::{Adapter, Bias, LoraPair};
use tailor_quant::Float;

use crate::config::{DecoderConfig, SERVE_FOLDER};
use crate::encode::{self, Source};
use crate::format::{TensorInfo, Value};
use crate::names::Turn;
use crate::writer::GgufWriter;
use crate::{Error, Result, keys};

const MERGE: &str = "merge it into its base and write the model";

#[derive(Debug, Clone)]
pub struct AdapterOptions {
    /// The type of A and B; they are f32 where they were trained.
    pub float: Float,
    /// `general.name`.
    pub name: String,
    /// More metadata, under names of one's own.
    pub extra: Vec<(String, Value)>,
}

impl Default for AdapterOptions {
    fn default() -> Self {
        Self { float: Float::F32, name: String::new(), extra: Vec::new() }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct AdapterReport {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Layers that have A and B.
    pub layers: usize,
    /// Of the file.
    pub bytes: u64,
    /// `adapter.lora.alpha`.
    pub alpha: f32,
    /// Layers whose B was multiplied by what α alone cannot say.
    pub folded: usize,
}

/// Writes `adapter`, made for a base with this config.json, to the new file `target`. It is there whole or not at all.
///
/// # Errors
/// What such a file cannot hold, by name; an adapter that does not fit the config; a file that exists; a full disk.
pub fn write_adapter(
    config: &[u8],
    adapter: &Adapter,
    target: &Path,
    options: &AdapterOptions,
) -> Result<AdapterReport> {
    let config = DecoderConfig::parse(config)?;
    check_expressible(adapter)?;
    let alpha = alpha(adapter);
    let mut planned = Vec::new();
    for (path, pair) in adapter.pairs() {
        let (name, turn) = place(&config, path, pair)?;
        let shape = |shape: [usize; 2], half| TensorInfo {
            name: format!("{name}.lora_{half}"),
            shape: shape.to_vec(),
            float: options.float,
        };
        let infos = [shape([pair.rank, pair.in_features], 'a'), shape([pair.out_features, pair.rank], 'b')];
        planned.push((infos, path, pair, turn));
    }
    let mut metadata = keys::general("adapter", config.architecture, &options.name, options.float);
    metadata.push(("adapter.type".into(), "lora".into()));
    metadata.push(("adapter.lora.alpha".into(), alpha.into()));
    metadata.extend(options.extra.iter().cloned());

    let infos = planned.iter().flat_map(|(infos, ..)| infos.clone()).collect();
    let mut writer = GgufWriter::create(target, &metadata, infos)?;
    let mut folded = 0;
    for (infos, path, pair, turn) in &planned {
        let factor = factor(adapter, path, pair, alpha);
        folded += usize::from(factor != 1.0);
        let b: Vec<f32> = pair.b.iter().map(|value| (f64::from(*value) * factor) as f32).collect();
        let halves = [(&pair.a, Turn::AsIs), (&b, *turn)];
        for (info, (values, turn)) in infos.iter().zip(halves) {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let source = Source { name: path, shape: &info.shape, float: Float::F32, bytes: &bytes };
            encode::write(&mut writer, &source, turn, info.float)?;
        }
    }
    let bytes = writer.finish()?;
    Ok(AdapterReport { architecture: config.architecture.name(), layers: planned.len(), bytes, alpha, folded })
}

fn check_expressible(adapter: &Adapter) -> Result<()> {
    let refuse = |what: &str, problem: &str| Err(Error::not_mapped(what, problem, MERGE));
    let config = adapter.config();
    if config.prompt.is_some() {
        let problem = "a GGUF adapter holds A and B, and no virtual tokens";
        return Err(Error::not_mapped("prompt_embeddings", problem, "serve it with base and adapter apart"));
    }
    if config.use_dora {
        return refuse("use_dora", "a GGUF adapter holds A and B, and no magnitudes");
    }
    if config.lora_bias {
        return refuse("lora_bias", "a GGUF adapter holds A and B, and no bias");
    }
    // Beside LoRA on the head PEFT saves the head's own weight, which was not trained.
    let is_heads_own = |path: &str| path == "lm_head.weight" && adapter.pairs().contains_key("lm_head");
    if let Some(path) = adapter.tensors().whole.keys().find(|path| !is_heads_own(path)) {
        let setting = if config.bias != Bias::None && path.ends_with(".bias") { "bias" } else { "modules_to_save" };
        let problem = format!("the adapter has {path} whole, and a GGUF adapter holds A and B alone");
        return refuse(setting, &problem);
    }
    if adapter.pairs().keys().all(|path| adapter.scale_for(path) == 0.0) {
        return refuse("lora_alpha", "0 leaves the base as it is, and llama.cpp would take it for a scale of 1");
    }
    Ok(())
}

/// The α with which most layers need nothing else.
fn alpha(adapter: &Adapter) -> f32 {
    let wanted = |(path, pair): (&String, &LoraPair)| (adapter.scale_for(path) * pair.rank as f64) as f32;
    let all: Vec<f32> = adapter.pairs().iter().map(wanted).filter(|alpha| *alpha > 0.0).collect();
    let count = |alpha: f32| all.iter().filter(|other| **other == alpha).count();
    all.iter().copied().max_by_key(|alpha| count(*alpha)).unwrap_or(1.0)
}

/// What B must be multiplied by, so that α/r and it are the layer's scale.
fn factor(adapter: &Adapter, path: &str, pair: &LoraPair, alpha: f32) -> f64 {
    let wanted = adapter.scale_for(path) * pair.rank as f64;
    if wanted as f32 == alpha { 1.0 } else { wanted / f64::from(alpha) }
}

fn place(config: &DecoderConfig, path: &str, pair: &LoraPair) -> Result<(String, Turn)> {
    let head_is_embedding = path == "lm_head" && (config.tied || !config.architecture.has_head());
    if head_is_embedding {
        let problem = "the head is the embedding, and llama.cpp puts an adapter on both or on none";
        return Err(Error::not_mapped(path, problem, MERGE));
    }
    let Some(shape) = config.linear_shape(path) else {
        return Err(Error::not_mapped(path, "llama.cpp puts no adapter there", SERVE_FOLDER));
    };
    if shape != (pair.in_features, pair.out_features) {
        let (inputs, outputs) = shape;
        let problem = format!(
            "{} inputs and {} outputs; the base's config.json makes it {inputs} and {outputs}",
            pair.in_features, pair.out_features
        );
        return Err(Error::value(path, problem));
    }
    let place = config.place(&format!("{path}.weight"))?;
    let place = place.ok_or_else(|| Error::not_mapped(path, "llama.cpp puts no adapter there", SERVE_FOLDER))?;
    Ok((place.name, place.turn))
}
