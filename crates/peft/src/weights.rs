//! `adapter_model.safetensors`: tensors by PEFT's names, as pairs by module path.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};

use crate::adapter::LoraPair;
use crate::config::MAX_RANK;
use crate::error::{Error, Result};

/// The JSON header of an adapter; the format itself would allow 100 MB.
const MAX_HEADER_BYTES: u64 = 1 << 20;
const MAX_TENSORS: usize = 10_000;
const HEADER_LENGTH_BYTES: usize = 8;

const PREFIX: &str = "base_model.model.";
const A_SUFFIX: &str = ".lora_A.weight";
const B_SUFFIX: &str = ".lora_B.weight";

/// A matrix as it stands in the file.
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

pub(crate) fn read(bytes: &[u8]) -> Result<BTreeMap<String, LoraPair>> {
    check_container(bytes)?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| Error::weights(format!("not valid: {error}")))?;
    if file.len() > MAX_TENSORS {
        return Err(Error::weights(format!("{} tensors, the limit is {MAX_TENSORS}", file.len())));
    }

    let mut halves: BTreeMap<String, (Option<Matrix>, Option<Matrix>)> = BTreeMap::new();
    // Sorted, so that of several faults the same one is always reported.
    let mut names = file.names();
    names.sort_unstable();
    for name in names {
        let view = file.tensor(name).map_err(|error| Error::tensor(name, error.to_string()))?;
        let (path, is_a) = split_name(name)?;
        let matrix = read_matrix(name, &view)?;
        let entry = halves.entry(path.to_owned()).or_default();
        if is_a { entry.0 = Some(matrix) } else { entry.1 = Some(matrix) }
    }
    halves.into_iter().map(|(path, (a, b))| Ok((path.clone(), join(&path, a, b)?))).collect()
}

fn check_container(bytes: &[u8]) -> Result<()> {
    const ZIP: &[u8] = b"PK\x03\x04";
    const PICKLE: u8 = 0x80;
    if bytes.starts_with(ZIP) || (bytes.first() == Some(&PICKLE) && matches!(bytes.get(1), Some(2..=5))) {
        return Err(Error::weights(
            "this is a pickle, which can run code when it is read; save the adapter with safe_serialization=True",
        ));
    }
    let Some(length) = bytes.first_chunk::<HEADER_LENGTH_BYTES>() else {
        return Err(Error::weights(format!("{} bytes is too short for a safetensors file", bytes.len())));
    };
    let header_bytes = u64::from_le_bytes(*length);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(Error::weights(format!("its header claims {header_bytes} bytes, the limit is {MAX_HEADER_BYTES}")));
    }
    Ok(())
}

/// The module path, and whether the tensor is A.
fn split_name(name: &str) -> Result<(&str, bool)> {
    if name.contains("lora_magnitude_vector") {
        return Err(Error::tensor(name, "DoRA adapters are not supported; train with use_dora=False"));
    }
    if name.contains("lora_embedding_") {
        return Err(Error::tensor(name, "LoRA on an embedding is not supported; target linear layers only"));
    }
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return Err(Error::tensor(name, format!("the name does not start with {PREFIX}; save the adapter with peft")));
    };
    let (path, is_a) = match (rest.strip_suffix(A_SUFFIX), rest.strip_suffix(B_SUFFIX)) {
        (Some(path), _) => (path, true),
        (None, Some(path)) => (path, false),
        (None, None) => {
            let problem = "neither lora_A.weight nor lora_B.weight; whole modules and biases are not supported";
            return Err(Error::tensor(name, problem));
        }
    };
    if path.is_empty() || path.len() > 512 || path.split('.').any(str::is_empty) {
        return Err(Error::tensor(name, "this is no module path"));
    }
    Ok((path, is_a))
}

fn read_matrix(name: &str, view: &TensorView<'_>) -> Result<Matrix> {
    let [rows, columns] = *view.shape() else {
        return Err(Error::tensor(name, format!("shape {:?} is no matrix", view.shape())));
    };
    let data = view.data();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::F16 => data.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        other => return Err(Error::tensor(name, format!("values of type {other:?}; use F32, F16 or BF16"))),
    };
    if rows == 0 || columns == 0 {
        return Err(Error::tensor(name, format!("shape {rows}x{columns} holds no value")));
    }
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(Error::tensor(name, format!("value {at} is {}, which is not a finite number", values[at])));
    }
    Ok(Matrix { rows, columns, values })
}

fn join(path: &str, a: Option<Matrix>, b: Option<Matrix>) -> Result<LoraPair> {
    let a = a.ok_or_else(|| Error::tensor(path, "has lora_B and no lora_A"))?;
    let b = b.ok_or_else(|| Error::tensor(path, "has lora_A and no lora_B"))?;
    if a.rows != b.columns {
        let problem = format!("lora_A has rank {} and lora_B has rank {}", a.rows, b.columns);
        return Err(Error::tensor(path, problem));
    }
    if a.rows as u64 > MAX_RANK {
        return Err(Error::tensor(path, format!("rank {} is outside 1 to {MAX_RANK}", a.rows)));
    }
    Ok(LoraPair { rank: a.rows, in_features: a.columns, out_features: b.rows, a: a.values, b: b.values })
}

/// A matrix on its way to the file.
struct Out<'a> {
    shape: [usize; 2],
    values: &'a [f32],
}

impl View for Out<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}

pub(crate) fn write(pairs: &BTreeMap<String, LoraPair>) -> Result<Vec<u8>> {
    if 2 * pairs.len() > MAX_TENSORS {
        return Err(Error::weights(format!("{} tensors, the limit is {MAX_TENSORS}", 2 * pairs.len())));
    }
    let tensors = pairs.iter().flat_map(|(path, pair)| {
        let a = Out { shape: [pair.rank, pair.in_features], values: &pair.a };
        let b = Out { shape: [pair.out_features, pair.rank], values: &pair.b };
        [(format!("{PREFIX}{path}{A_SUFFIX}"), a), (format!("{PREFIX}{path}{B_SUFFIX}"), b)]
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(tensors, Some(metadata))
        .map_err(|error| Error::weights(format!("cannot be written: {error}")))?;
    // What we write we must be able to read.
    check_container(&bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
