//! The linear layers and other tensors of a base: what an adapter can be checked against without loading the base.
//!
//! Shapes come from the headers of the base's safetensors files. A 4-bit weight is stored packed, so its true shape is in
//! its `quant_state`, a few hundred bytes that are read by range. Nothing else of the base is read.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use tailor_blobs::Store;
use tailor_domain::{BaseManifest, Digest, FileRef};
use tailor_peft::{BaseShapes, LinearShape};
use tailor_quant::QuantState;

use crate::{Error, Result};

/// By module path, e.g. `model.layers.0.self_attn.q_proj`.
type Linears = BTreeMap<String, LinearShape>;

/// A header above this belongs to no model; the format's own limit is the same.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const MAX_STATE_BYTES: u64 = 4096;
/// Range reads under way at once.
const READS_AT_ONCE: usize = 32;
/// Bases remembered; a few hundred kilobytes each at most.
const MAX_REMEMBERED: usize = 64;

/// Layers by base fingerprint. A base never changes, so nothing here ever goes stale.
#[derive(Debug, Clone, Default)]
pub struct Cache(Arc<Mutex<HashMap<Digest, Arc<BaseShapes>>>>);

impl Cache {
    /// The base's layers, read at the first question.
    ///
    /// # Errors
    /// As [`read`].
    pub async fn of(&self, store: &Store, base: &BaseManifest) -> Result<Arc<BaseShapes>> {
        if let Some(known) = self.lock().get(&base.fingerprint) {
            return Ok(known.clone());
        }
        let layers = Arc::new(read(store, base.name.as_str(), &base.files).await?);
        let mut remembered = self.lock();
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(base.fingerprint.clone(), layers.clone());
        Ok(layers)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Arc<BaseShapes>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Deserialize)]
struct TensorInfo {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// Whether a file of the folder holds the model's weights.
pub fn is_weights(file: &FileRef) -> bool {
    file.name.starts_with("model") && file.name.ends_with(".safetensors")
}

/// Reads the shapes in a folder's `model*.safetensors`.
///
/// # Errors
/// [`Error::Base`]: a header or a `quant_state` that is none. [`Error::Store`].
pub async fn read(store: &Store, base: &str, files: &[FileRef]) -> Result<BaseShapes> {
    let (mut linears, mut tensors) = (Linears::new(), BTreeMap::new());
    for file in files.iter().filter(|file| is_weights(file)) {
        let (more_linears, more_tensors) = read_file(store, base, file).await?;
        linears.extend(more_linears);
        tensors.extend(more_tensors);
    }
    Ok(BaseShapes::new(linears, tensors))
}

async fn read_file(store: &Store, base: &str, file: &FileRef) -> Result<(Linears, BTreeMap<String, Vec<usize>>)> {
    let broken = |problem: String| Error::Base { base: base.to_owned(), file: file.name.clone(), problem };
    if file.size_bytes < 8 {
        return Err(broken(format!("{} bytes are no safetensors file", file.size_bytes)));
    }
    let prefix = store.get_blob_range(&file.digest, 0..8).await?;
    let length: [u8; 8] = prefix.as_ref().try_into().map_err(|_| broken("it has no header".into()))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES.min(file.size_bytes - 8) {
        return Err(broken(format!("its header claims {header_bytes} bytes; it is no safetensors file")));
    }
    let data_start = 8 + header_bytes;
    let header = store.get_blob_range(&file.digest, 8..data_start).await?;
    let tensors = parse_header(&header).map_err(&broken)?;

    let mut linears = Linears::new();
    let mut packed = Vec::new();
    for linear in linear_weights(&tensors) {
        match linear.stored {
            Stored::Plain(shape) => drop(linears.insert(linear.module, shape)),
            Stored::Packed { state: [start, end] } => {
                let in_file = start < end && end - start <= MAX_STATE_BYTES && end <= file.size_bytes - data_start;
                if !in_file {
                    return Err(broken(format!("the quant_state of {} has no sound place in the file", linear.module)));
                }
                packed.push((linear.module, data_start + start..data_start + end));
            }
        }
    }
    let digest = &file.digest;
    let states: Vec<(String, Bytes)> = futures::stream::iter(packed)
        .map(|(module, place)| async move { Ok::<_, Error>((module, store.get_blob_range(digest, place).await?)) })
        .buffer_unordered(READS_AT_ONCE)
        .try_collect()
        .await?;
    for (module, bytes) in states {
        let state = QuantState::decode(&bytes).map_err(|problem| broken(format!("{module}: {problem}")))?;
        let shape = linear_shape(&state.shape)
            .ok_or_else(|| broken(format!("{module}: shape {:?} has not two dimensions", state.shape)))?;
        linears.insert(module, shape);
    }
    let plain = tensors.into_iter().filter(|(name, info)| is_float(info) && !name.contains(".weight."));
    Ok((linears, plain.map(|(name, info)| (name, info.shape)).collect()))
}

fn parse_header(header: &[u8]) -> Result<BTreeMap<String, TensorInfo>, String> {
    let mut entries: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|error| format!("its header is not readable: {error}"))?;
    entries.remove("__metadata__");
    let parse = |(name, value)| match serde_json::from_value(value) {
        Ok(info) => Ok((name, info)),
        Err(error) => Err(format!("its header is not readable: tensor {name}: {error}")),
    };
    entries.into_iter().map(parse).collect()
}

/// A weight of a linear layer.
struct Linear {
    module: String,
    stored: Stored,
}

enum Stored {
    Plain(LinearShape),
    /// Four bits a value; where its `quant_state` lies, from the end of the header.
    Packed {
        state: [u64; 2],
    },
}

/// A weight is stored as [out, in].
fn linear_shape(shape: &[usize]) -> Option<LinearShape> {
    match *shape {
        [out_features, in_features] => Some(LinearShape { in_features, out_features }),
        _ => None,
    }
}

fn linear_weights(tensors: &BTreeMap<String, TensorInfo>) -> impl Iterator<Item = Linear> {
    tensors.iter().filter_map(|(name, weight)| {
        let module = name.strip_suffix(".weight")?;
        let state_prefix = format!("{name}.quant_state.");
        let state = tensors.range(state_prefix.clone()..).next().filter(|(key, _)| key.starts_with(&state_prefix));
        let stored = match state {
            Some((_, state)) => Stored::Packed { state: state.data_offsets },
            None => {
                let shape = linear_shape(&weight.shape).filter(|_| is_float(weight) && !is_embedding(module))?;
                Stored::Plain(shape)
            }
        };
        Some(Linear { module: module.to_owned(), stored })
    })
}

fn is_float(tensor: &TensorInfo) -> bool {
    matches!(tensor.dtype.as_str(), "F32" | "F16" | "BF16")
}

/// Two-dimensional weights that are looked up, not multiplied.
fn is_embedding(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    matches!(last, "shared" | "embed_tokens" | "relative_attention_bias")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_and_norms_are_no_linear_layers() {
        let header = br#"{"__metadata__":{"format":"pt"},
            "model.embed_tokens.weight":{"dtype":"BF16","shape":[8,4],"data_offsets":[0,64]},
            "model.norm.weight":{"dtype":"BF16","shape":[4],"data_offsets":[64,72]},
            "lm_head.weight":{"dtype":"BF16","shape":[8,4],"data_offsets":[72,136]},
            "model.layers.0.q_proj.weight":{"dtype":"U8","shape":[8,1],"data_offsets":[136,144]},
            "model.layers.0.q_proj.weight.absmax":{"dtype":"F32","shape":[1],"data_offsets":[144,148]},
            "model.layers.0.q_proj.weight.quant_state.bitsandbytes__nf4":
                {"dtype":"U8","shape":[100],"data_offsets":[148,248]}}"#;
        let tensors = parse_header(header).expect("readable");
        let found: Vec<_> = linear_weights(&tensors)
            .map(|linear| (linear.module, matches!(linear.stored, Stored::Packed { .. })))
            .collect();
        assert_eq!(found, [("lm_head".to_owned(), false), ("model.layers.0.q_proj".to_owned(), true)]);
    }

    #[test]
    fn a_header_that_is_none_is_refused() {
        for bad in [&b"[]"[..], b"{\"a\":1}", b"\xff\xfe", b"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1]}}"] {
            assert!(parse_header(bad).is_err(), "{bad:?}");
        }
    }
}
