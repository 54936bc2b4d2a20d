//! `adapter_model.safetensors`: tensors by PEFT's names, sorted by what they do.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};

use crate::adapter::is_heads_own;
use crate::config::MAX_RANK;
use crate::error::{Error, Result};
use crate::tensors::{LoraPair, PromptEmbeddings, Tensors, WholeTensor};

/// The JSON header of an adapter; the format itself would allow 100 MB.
const MAX_HEADER_BYTES: u64 = 1 << 20;
const MAX_TENSORS: usize = 10_000;
const HEADER_LENGTH_BYTES: usize = 8;

const PREFIX: &str = "base_model.model.";
const A_SUFFIX: &str = ".lora_A.weight";
const B_SUFFIX: &str = ".lora_B.weight";
const B_BIAS_SUFFIX: &str = ".lora_B.bias";
const MAGNITUDE_SUFFIX: &str = ".lora_magnitude_vector";
/// The base's own bias, and the head's own weight, under a module that has LoRA.
const BASE_BIAS_SUFFIX: &str = ".base_layer.bias";
/// The only tensor of a prompt-tuning adapter.
const PROMPT: &str = "prompt_embeddings";
const BASE_HEAD: &str = "lm_head.base_layer.weight";

/// What a tensor's name says of it, with the path of its module, or of the parameter it stands for.
enum Role<'a> {
    A(&'a str),
    B(&'a str),
    BBias(&'a str),
    Magnitude(&'a str),
    BaseBias(&'a str),
    Whole(&'a str),
    Prompt,
}

/// A matrix as it stands in the file.
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

pub(crate) fn read(bytes: &[u8]) -> Result<Tensors> {
    check_container(bytes)?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| Error::weights(format!("not valid: {error}")))?;
    if file.len() > MAX_TENSORS {
        return Err(Error::weights(format!("{} tensors, the limit is {MAX_TENSORS}", file.len())));
    }

    let mut tensors = Tensors::default();
    let mut halves: BTreeMap<String, (Option<Matrix>, Option<Matrix>)> = BTreeMap::new();
    // Sorted, so that of several faults the same one is always reported.
    let mut names = file.names();
    names.sort_unstable();
    for name in names {
        let view = file.tensor(name).map_err(|error| Error::tensor(name, error.to_string()))?;
        let role = Role::of(name)?;
        if !matches!(role, Role::Whole(_) | Role::BaseBias(_)) && view.dtype() != Dtype::F32 {
            tensors.narrow.insert(name.to_owned(), view.dtype());
        }
        match role {
            Role::A(path) => halves.entry(path.to_owned()).or_default().0 = Some(read_matrix(name, &view)?),
            Role::B(path) => halves.entry(path.to_owned()).or_default().1 = Some(read_matrix(name, &view)?),
            Role::BBias(path) => drop(tensors.lora_biases.insert(path.to_owned(), read_vector(name, &view)?)),
            Role::Magnitude(path) => drop(tensors.magnitudes.insert(path.to_owned(), read_vector(name, &view)?)),
            Role::BaseBias(path) => put_whole(&mut tensors, format!("{path}.bias"), name, &view)?,
            Role::Whole(path) => put_whole(&mut tensors, path.to_owned(), name, &view)?,
            Role::Prompt => {
                let Matrix { rows, columns, values } = read_matrix(name, &view)?;
                tensors.prompt = Some(PromptEmbeddings { rows, token_dim: columns, values });
            }
        }
    }
    tensors.pairs =
        halves.into_iter().map(|(path, (a, b))| Ok((path.clone(), join(&path, a, b)?))).collect::<Result<_>>()?;
    check_places(&file, &tensors)?;
    Ok(tensors)
}

/// PEFT keeps what is the base's own of a module with LoRA under `base_layer`, and passes over what lies elsewhere.
fn check_places(file: &SafeTensors<'_>, tensors: &Tensors) -> Result<()> {
    for path in tensors.whole.keys() {
        let name = file_name(path, tensors);
        if file.tensor(&name).is_err() {
            return Err(Error::tensor(
                format!("{PREFIX}{path}"),
                format!("peft would not read it here, but as {name}"),
            ));
        }
    }
    Ok(())
}

/// The name in the file of what stands in the place of the parameter at `path`.
fn file_name(path: &str, tensors: &Tensors) -> String {
    match path.rsplit_once('.') {
        Some((module, "bias")) if tensors.pairs.contains_key(module) => format!("{PREFIX}{module}{BASE_BIAS_SUFFIX}"),
        _ if is_heads_own(path, &tensors.pairs) => format!("{PREFIX}{BASE_HEAD}"),
        _ => format!("{PREFIX}{path}"),
    }
}

fn check_container(bytes: &[u8]) -> Result<()> {
    let header_bytes = bytes.first_chunk::<HEADER_LENGTH_BYTES>().map(|length| u64::from_le_bytes(*length));
    match header_bytes {
        Some(header_bytes) if header_bytes <= MAX_HEADER_BYTES => Ok(()),
        // Only now: the length of a sound header may begin with the bytes of a pickle, but then zeros follow.
        _ if is_pickle(bytes) => Err(Error::weights(
            "this is a pickle, which can run code when it is read; save the adapter with safe_serialization=True",
        )),
        Some(header_bytes) => {
            Err(Error::weights(format!("its header claims {header_bytes} bytes, the limit is {MAX_HEADER_BYTES}")))
        }
        None => Err(Error::weights(format!("{} bytes is too short for a safetensors file", bytes.len()))),
    }
}

fn is_pickle(bytes: &[u8]) -> bool {
    const ZIP: &[u8] = b"PK\x03\x04";
    const PICKLE: u8 = 0x80;
    bytes.starts_with(ZIP) || (bytes.first() == Some(&PICKLE) && matches!(bytes.get(1), Some(2..=5)))
}

impl<'a> Role<'a> {
    fn of(name: &'a str) -> Result<Self> {
        if name == PROMPT {
            return Ok(Role::Prompt);
        }
        if name.contains("lora_embedding_") {
            return Err(Error::tensor(name, "LoRA on an embedding is not supported; target linear layers only"));
        }
        let Some(rest) = name.strip_prefix(PREFIX) else {
            let problem = format!("the name does not start with {PREFIX}; save the adapter with peft");
            return Err(Error::tensor(name, problem));
        };
        type Make<'a> = fn(&'a str) -> Role<'a>;
        let suffixes: [(&str, Make<'a>); 5] = [
            (A_SUFFIX, Role::A),
            (B_SUFFIX, Role::B),
            (B_BIAS_SUFFIX, Role::BBias),
            (MAGNITUDE_SUFFIX, Role::Magnitude),
            (BASE_BIAS_SUFFIX, Role::BaseBias),
        ];
        let found = suffixes.iter().find_map(|(suffix, make)| Some((rest.strip_suffix(suffix)?, make)));
        let (path, role) = match found {
            Some((path, make)) => (path, make(path)),
            None if rest == BASE_HEAD => ("lm_head", Role::Whole("lm_head.weight")),
            None if rest.ends_with(".base_layer.weight") => {
                let problem = "LoRA on an embedding is not supported; train without it in target_modules, or with it in \
                               modules_to_save";
                return Err(Error::tensor(name, problem));
            }
            None if !rest.contains(".lora_") && (rest.ends_with(".weight") || rest.ends_with(".bias")) => {
                (rest, Role::Whole(rest))
            }
            None => {
                let problem = "neither lora_A.weight nor lora_B.weight, nor anything else that peft's LoRA is known \
                               to save";
                return Err(Error::tensor(name, problem));
            }
        };
        if path.is_empty() || path.len() > 512 || path.split('.').any(str::is_empty) {
            return Err(Error::tensor(name, "this is no module path"));
        }
        Ok(role)
    }
}

fn read_matrix(name: &str, view: &TensorView<'_>) -> Result<Matrix> {
    let [rows, columns] = *view.shape() else {
        return Err(Error::tensor(name, format!("shape {:?} is no matrix", view.shape())));
    };
    let values = widened(name, view)?;
    if rows == 0 || columns == 0 {
        return Err(Error::tensor(name, format!("shape {rows}x{columns} holds no value")));
    }
    Ok(Matrix { rows, columns, values })
}

fn read_vector(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    if view.shape().len() != 1 || view.shape()[0] == 0 {
        return Err(Error::tensor(name, format!("shape {:?} is no vector", view.shape())));
    }
    widened(name, view)
}

fn put_whole(tensors: &mut Tensors, path: String, name: &str, view: &TensorView<'_>) -> Result<()> {
    check_values(name, view)?;
    let whole = WholeTensor { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
    match tensors.whole.insert(path, whole) {
        None => Ok(()),
        Some(_) => Err(Error::tensor(name, "the file has another tensor for the same parameter")),
    }
}

fn widened(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    check_values(name, view)?;
    let data = view.data();
    Ok(match view.dtype() {
        Dtype::F16 => data.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        _ => data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
    })
}

fn check_values(name: &str, view: &TensorView<'_>) -> Result<()> {
    if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Err(Error::tensor(name, format!("values of type {:?}; use F32, F16 or BF16", view.dtype())));
    }
    match first_not_finite(view.dtype(), view.data()) {
        Some(at) => Err(Error::tensor(name, format!("value {at} is not a finite number"))),
        None => Ok(()),
    }
}

pub(crate) fn first_not_finite(dtype: Dtype, data: &[u8]) -> Option<usize> {
    match dtype {
        Dtype::F16 => data.as_chunks().0.iter().position(|bytes| !f16::from_le_bytes(*bytes).is_finite()),
        Dtype::BF16 => data.as_chunks().0.iter().position(|bytes| !bf16::from_le_bytes(*bytes).is_finite()),
        _ => data.as_chunks().0.iter().position(|bytes| !f32::from_le_bytes(*bytes).is_finite()),
    }
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

/// A tensor on its way to the file.
struct Out<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    values: Values<'a>,
}

enum Values<'a> {
    /// To be rounded to the type; exact where it was widened from it.
    Wide(&'a [f32]),
    AsStored(&'a [u8]),
}

impl View for Out<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = match self.values {
            Values::AsStored(bytes) => return Cow::Borrowed(bytes),
            Values::Wide(values) => values.iter(),
        };
        Cow::Owned(match self.dtype {
            Dtype::F16 => values.flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
            Dtype::BF16 => values.flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
            _ => values.flat_map(|value| value.to_le_bytes()).collect(),
        })
    }

    fn data_len(&self) -> usize {
        match self.values {
            Values::AsStored(bytes) => bytes.len(),
            Values::Wide(values) => values.len() * self.dtype.bitsize() / 8,
        }
    }
}

pub(crate) fn write(tensors: &Tensors) -> Result<Vec<u8>> {
    let out = outgoing(tensors);
    if out.len() > MAX_TENSORS {
        return Err(Error::weights(format!("{} tensors, the limit is {MAX_TENSORS}", out.len())));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(out, Some(metadata))
        .map_err(|error| Error::weights(format!("cannot be written: {error}")))?;
    // What we write we must be able to read.
    check_container(&bytes)?;
    Ok(bytes)
}

fn outgoing(tensors: &Tensors) -> Vec<(String, Out<'_>)> {
    let mut all = Vec::new();
    let mut wide = |path: &str, suffix: &str, shape: Vec<usize>, values| {
        let name = format!("{PREFIX}{path}{suffix}");
        let dtype = tensors.narrow.get(&name).copied().unwrap_or(Dtype::F32);
        all.push((name, Out { dtype, shape, values: Values::Wide(values) }));
    };
    for (path, pair) in &tensors.pairs {
        wide(path, A_SUFFIX, vec![pair.rank, pair.in_features], &pair.a);
        wide(path, B_SUFFIX, vec![pair.out_features, pair.rank], &pair.b);
    }
    for (suffix, vectors) in [(MAGNITUDE_SUFFIX, &tensors.magnitudes), (B_BIAS_SUFFIX, &tensors.lora_biases)] {
        for (path, values) in vectors {
            wide(path, suffix, vec![values.len()], values);
        }
    }
    if let Some(PromptEmbeddings { rows, token_dim, values }) = &tensors.prompt {
        let dtype = tensors.narrow.get(PROMPT).copied().unwrap_or(Dtype::F32);
        all.push((PROMPT.to_owned(), Out { dtype, shape: vec![*rows, *token_dim], values: Values::Wide(values) }));
    }
    for (path, whole) in &tensors.whole {
        let values = Values::AsStored(&whole.bytes);
        all.push((file_name(path, tensors), Out { dtype: whole.dtype, shape: whole.shape.clone(), values }));
    }
    all
}

#[cfg(test)]
mod tests;
