//! What the merged folder will hold, decided and checked before a byte is written.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use tailor_domain::Family;
use tailor_peft::{Adapter, BaseShapes, LinearShape, WholeTensor};
use tailor_quant::{Checkpoint, Float};

use crate::weight::{Edit, Source, Weight, float_of};
use crate::{Error, Result, biases};

const HEAD: &str = "lm_head";
const HEAD_WEIGHT: &str = "lm_head.weight";
/// The places of T5's one embedding.
const SHARED: &str = "shared.weight";
const SHARED_PLACES: [&str; 2] = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];

pub(crate) struct Plan<'a> {
    /// By name.
    pub weights: BTreeMap<String, Weight<'a>>,
    pub config: Map<String, Value>,
    /// Whether the head was the embedding in the base, and is a tensor of its own now.
    pub untied: bool,
}

impl<'a> Plan<'a> {
    /// # Errors
    /// An adapter that does not fit the base, or that no folder of the base's architecture can express.
    pub fn new(
        checkpoint: &Checkpoint,
        mut config: Map<String, Value>,
        adapter: &'a Adapter,
        compute: Float,
    ) -> Result<Self> {
        let family = family(checkpoint.folder(), &config)?;
        let tied = is_tied(checkpoint, &config, family);
        let mut weights = base_weights(checkpoint, tied)?;
        adapter.check_against(&shapes(&weights))?;

        let tensors = adapter.tensors();
        if tensors.prompt.is_some() {
            let problem = "virtual tokens stand before the input and are in no weight";
            return Err(Error::not_expressible("prompt_embeddings", problem));
        }
        let embedding = if family == Family::Decoder { "model.embed_tokens.weight" } else { SHARED };
        let touches_embedding = tensors.whole.keys().any(|path| stored_name(path) == embedding);
        let touches_head = tensors.pairs.contains_key(HEAD) || tensors.whole.contains_key(HEAD_WEIGHT);
        let untied = tied && (touches_embedding || touches_head);
        if untied {
            untie(&mut weights, &mut config, embedding, family);
        }
        for (path, whole) in &tensors.whole {
            if path == HEAD_WEIGHT && tensors.pairs.contains_key(HEAD) {
                // PEFT saves the head's weight beside LoRA on it, changed or not.
                let same = weights.get(HEAD_WEIGHT).is_some_and(|weight| has_values(weight, whole, compute));
                if same {
                    continue;
                }
                if tied {
                    let problem = "differs from the base's, which is its embedding as well; PEFT would change both";
                    return Err(Error::not_expressible(path, problem));
                }
            }
            check_shared(path, whole, &tensors.whole)?;
            if let Some(module) = path.strip_suffix(".bias").filter(|_| !weights.contains_key(path)) {
                biases::add(&mut weights, &mut config, module)?;
            }
            edit(&mut weights, stored_name(path), |edit| edit.own = Some(whole))?;
        }
        for (path, pair) in &tensors.pairs {
            let scale = adapter.scale_for(path) as f32;
            edit(&mut weights, &format!("{path}.weight"), |edit| edit.pair = Some((pair, scale)))?;
        }
        for (path, magnitude) in &tensors.magnitudes {
            edit(&mut weights, &format!("{path}.weight"), |edit| edit.magnitude = Some(magnitude))?;
        }
        for (path, bias) in &tensors.lora_biases {
            let name = format!("{path}.bias");
            if bias.iter().all(|value| *value == 0.0) {
                continue;
            }
            if !weights.contains_key(&name) {
                biases::add(&mut weights, &mut config, path)?;
            }
            let scale = adapter.scale_for(path) as f32;
            edit(&mut weights, &name, |edit| edit.plus = Some((bias, scale)))?;
        }
        config.remove("quantization_config");
        Ok(Self { weights, config, untied })
    }
}

fn family(folder: &Path, config: &Map<String, Value>) -> Result<Family> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    Family::of_model_type(model_type)
        .map_err(|problem| Error::file(&folder.join("config.json"), format!("model_type {problem}")))
}

/// Whether the head is the embedding: a decoder's config says it, and a T5 has no head of its own.
fn is_tied(checkpoint: &Checkpoint, config: &Map<String, Value>, family: Family) -> bool {
    match family {
        Family::EncoderDecoder => !checkpoint.contains(HEAD_WEIGHT),
        Family::Decoder => config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or_else(|| {
            config.get("model_type").and_then(Value::as_str).is_some_and(|name| name.starts_with("gemma"))
        }),
    }
}

fn base_weights<'a>(checkpoint: &Checkpoint, tied: bool) -> Result<BTreeMap<String, Weight<'a>>> {
    // What follows a weight's own name is a part of how it is quantised.
    let names = checkpoint.names().filter(|name| !name.contains(".weight.") && !is_redundant(name, tied));
    let weight = |name: &str| {
        let (source, shape) = Source::of(checkpoint, name)?;
        Ok((name.to_owned(), Weight { name: name.to_owned(), shape, source, edit: Edit::default() }))
    };
    names.map(weight).collect()
}

/// Copies of tied tensors and buffers that old checkpoints carry.
fn is_redundant(name: &str, tied: bool) -> bool {
    (tied && name == HEAD_WEIGHT)
        || SHARED_PLACES.contains(&name)
        || name.ends_with(".rotary_emb.inv_freq")
        || name == "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
}

fn shapes(weights: &BTreeMap<String, Weight<'_>>) -> BaseShapes {
    let is_table = |module: &str| {
        let leaf = module.rsplit_once('.').map_or(module, |(_, leaf)| leaf);
        matches!(leaf, "embed_tokens" | "shared" | "relative_attention_bias")
    };
    let linears = weights.values().filter_map(|weight| {
        let module = weight.name.strip_suffix(".weight").filter(|module| !is_table(module))?;
        let [out_features, in_features] = *weight.shape.as_slice() else { return None };
        Some((module.to_owned(), LinearShape { in_features, out_features }))
    });
    let tensors = weights.values().map(|weight| (weight.name.clone(), weight.shape.clone()));
    BaseShapes::new(linears.collect(), tensors.collect())
}

/// The tensor of a folder that is used at `path`.
fn stored_name(path: &str) -> &str {
    if SHARED_PLACES.contains(&path) { SHARED } else { path }
}

fn untie(weights: &mut BTreeMap<String, Weight<'_>>, config: &mut Map<String, Value>, embedding: &str, family: Family) {
    if let Some(Weight { shape, source, .. }) = weights.get(embedding) {
        let (shape, source) = (shape.clone(), source.clone());
        let head = Weight { name: HEAD_WEIGHT.into(), shape, source, edit: Edit::default() };
        weights.insert(HEAD_WEIGHT.into(), head);
    }
    // A T5 takes "tied" for "scaled" where nothing else is said.
    let is_t5 = family == Family::EncoderDecoder && config.get("model_type").is_some_and(|name| name == "t5");
    if is_t5 && config.get("scale_decoder_outputs").is_none_or(Value::is_null) {
        let scaled = config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true);
        config.insert("scale_decoder_outputs".into(), scaled.into());
    }
    config.insert("tie_word_embeddings".into(), false.into());
}

/// T5's encoder and decoder have one embedding in every folder; PEFT may have trained one for each.
fn check_shared(path: &str, whole: &WholeTensor, all: &BTreeMap<String, WholeTensor>) -> Result<()> {
    let Some(other) = SHARED_PLACES.iter().find(|place| SHARED_PLACES.contains(&path) && **place != path) else {
        return Ok(());
    };
    if all.get(*other) == Some(whole) {
        return Ok(());
    }
    let problem = format!("is not what {other} is, and a T5 has one embedding, {SHARED}, for both");
    Err(Error::not_expressible(path, problem))
}

/// Whether the base's values are just these, where both are rounded to `compute`.
fn has_values(weight: &Weight<'_>, whole: &WholeTensor, compute: Float) -> bool {
    let columns = weight.columns();
    let own = Weight {
        name: String::new(),
        shape: whole.shape.clone(),
        source: Source::Plain(float_of(whole), whole.bytes.clone().into()),
        edit: Edit { own: Some(whole), ..Edit::default() },
    };
    let (base, own_values) = (weight.source.open(), own.source.open());
    let differ = weight.map_rows(&base, 0..weight.rows(), compute, |row, base, _| {
        let mut values = vec![0f32; columns];
        own_values.read(row * columns, &mut values);
        Ok(base.iter().zip(&values).all(|(base, own)| *base == compute.round(*own)))
    });
    differ.is_ok_and(|rows| rows.into_iter().all(|same| same))
}

fn edit<'a>(weights: &mut BTreeMap<String, Weight<'a>>, name: &str, change: impl FnOnce(&mut Edit<'a>)) -> Result<()> {
    match weights.get_mut(name) {
        Some(weight) => {
            change(&mut weight.edit);
            Ok(())
        }
        // Checked by shape before; what is left is a place that the checkpoint has under no name.
        None => Err(Error::not_expressible(name, "the base has no such tensor")),
    }
}
