//! A Hugging Face folder's tensors, mapped: one `model.safetensors` or shards named by an index.
//!
//! Everything in the folder is hostile until checked: headers are bounded, shard names are plain file names, offsets and
//! lengths are compared with the file before a byte is handed out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::{Bytes, Code, Error, Float, QuantState, Quantized, Result, Scales};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_SHARDS: usize = 1024;
const MAX_TENSORS: usize = 1_000_000;
/// Of a file, as on every usual disk.
const MAX_NAME_BYTES: usize = 255;

/// The mapped tensors of a folder.
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<(PathBuf, Arc<Mmap>)>,
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// One tensor: what the header says and its bytes in the map.
#[derive(Debug, Clone)]
pub struct TensorRef {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Bytes,
}

impl TensorRef {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The float type, if it is one that a weight may have.
    pub fn float(&self) -> Option<Float> {
        match self.dtype {
            Dtype::F32 => Some(Float::F32),
            Dtype::BF16 => Some(Float::Bf16),
            Dtype::F16 => Some(Float::F16),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Checkpoint {
    /// Maps the folder's tensor files and checks their headers. The files must not be changed while mapped.
    ///
    /// # Errors
    /// No tensor file, a header that does not hold, a shard name that is no plain file name, a tensor in two files.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut checkpoint = Self { folder: folder.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        let index = folder.join(INDEX);
        let single = folder.join(SINGLE);
        if single.exists() {
            checkpoint.map(&single)?;
            return Ok(checkpoint);
        }
        if !index.exists() {
            let problem = format!("folder has neither {SINGLE} nor {INDEX}; only safetensors checkpoints are read");
            return Err(Error::file(folder, problem));
        }
        let weight_map = read_index(&index)?;
        for shard in weight_map.values().collect::<BTreeSet<_>>() {
            checkpoint.map(&folder.join(shard))?;
        }
        match weight_map.iter().find(|(tensor, _)| !checkpoint.tensors.contains_key(*tensor)) {
            Some((tensor, shard)) => Err(Error::file(&index, format!("tensor {tensor:?} is not in {shard:?}"))),
            None => Ok(checkpoint),
        }
    }

    fn map(&mut self, path: &Path) -> Result<()> {
        regular(path)?;
        let file = File::open(path).map_err(Error::io(path))?;
        // SAFETY: the mapping is read-only; the caller keeps the file unchanged while it is mapped.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| Error::file(path, format!("not safetensors: {error}")))?;
        let data = 8 + header;
        if metadata.data_len() != map.len() - data {
            let problem = format!("header describes {} bytes, file has {}", metadata.data_len(), map.len() - data);
            return Err(Error::file(path, problem));
        }
        let index = self.files.len();
        for (name, info) in metadata.tensors() {
            let (start, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
            let entry = Entry { file: index, dtype: info.dtype, shape: info.shape.clone(), start, end };
            if let Some(other) = self.tensors.insert(name.clone(), entry) {
                let problem = format!("tensor {name:?} is also in {}", self.files[other.file].0.display());
                return Err(Error::file(path, problem));
            }
        }
        if self.tensors.len() > MAX_TENSORS {
            return Err(Error::file(path, format!("{} tensors; the limit is {MAX_TENSORS}", self.tensors.len())));
        }
        self.files.push((path.to_owned(), Arc::new(map)));
        Ok(())
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// # Errors
    /// No tensor of this name.
    pub fn tensor(&self, name: &str) -> Result<TensorRef> {
        let entry = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::file(&self.folder, format!("checkpoint has no tensor {name:?}")))?;
        let map = Arc::clone(&self.files[entry.file].1);
        let bytes = Bytes::mapped(map, entry.start..entry.end);
        Ok(TensorRef { dtype: entry.dtype, shape: entry.shape.clone(), bytes })
    }

    /// An error about one tensor of this checkpoint.
    pub fn tensor_error(&self, name: &str, problem: impl Into<String>) -> Error {
        let path = self.tensors.get(name).map_or(&self.folder, |entry| &self.files[entry.file].0);
        Error::tensor(path, name, &problem.into())
    }

    /// The 4-bit weight called `name`, or `None` where that tensor is not quantised. Packed numbers stay in the map.
    ///
    /// # Errors
    /// Parts that are missing, of another type, or of a length that does not fit.
    pub fn quantized(&self, name: &str) -> Result<Option<Quantized>> {
        let Some((code, state_name)) = self.state_of(name) else { return Ok(None) };
        let state_tensor = self.tensor(&state_name)?;
        let state =
            QuantState::decode(&state_tensor.bytes).map_err(|problem| self.tensor_error(&state_name, problem))?;
        if state.code != code {
            let problem =
                format!("quant_type is {:?}, the tensor's name says {:?}", state.code.as_str(), code.as_str());
            return Err(self.tensor_error(&state_name, problem));
        }
        let scales = match (code, &state.nested) {
            (Code::Uniform4, _) => Scales::Affine {
                width: self.floats(&format!("{name}.width"))?,
                minimum: self.floats(&format!("{name}.minimum"))?,
            },
            (_, None) => Scales::Single(self.floats(&format!("{name}.absmax"))?),
            (_, Some(nested)) => {
                let map_name = format!("{name}.nested_quant_map");
                let map: Box<[f32; 256]> =
                    self.floats(&map_name)?.into_boxed_slice().try_into().map_err(|map: Box<[f32]>| {
                        self.tensor_error(&map_name, format!("has {} entries; 256 are needed", map.len()))
                    })?;
                Scales::Nested {
                    codes: self.raw_bytes(&format!("{name}.absmax"))?,
                    map,
                    absmax: self.floats(&format!("{name}.nested_absmax"))?,
                    blocksize: nested.blocksize,
                    offset: nested.offset,
                }
            }
        };
        let values = match code {
            Code::Uniform4 => None,
            Code::Nf4 | Code::Fp4 => {
                let map_name = format!("{name}.quant_map");
                let values: [f32; 16] = self.floats(&map_name)?.try_into().map_err(|map: Vec<f32>| {
                    self.tensor_error(&map_name, format!("has {} entries; 16 are needed", map.len()))
                })?;
                Some(values)
            }
        };
        let packed = self.raw_bytes(name)?;
        let weight = Quantized::new(&state, values, packed, scales);
        let weight = weight.map_err(|error| self.tensor_error(name, error.to_string()))?;
        let (largest, limit) = (weight.largest(), weight.dtype().largest());
        if largest > limit {
            let problem = format!("its scales make values up to {largest:e}; {:?} ends at {limit:e}", weight.dtype());
            return Err(self.tensor_error(name, problem));
        }
        Ok(Some(weight))
    }

    /// How many there are, 4-bit weights counted by their true shape.
    ///
    /// # Errors
    /// As [`Self::quantized`].
    pub fn parameters(&self) -> Result<u64> {
        let mut parameters = 0;
        // What follows a weight's own name is a part of how it is quantised.
        for name in self.names().filter(|name| !name.contains(".weight.")) {
            parameters += match self.quantized(name)? {
                Some(weight) => weight.elements() as u64,
                None => self.tensor(name)?.elements() as u64,
            };
        }
        Ok(parameters)
    }

    fn state_of(&self, name: &str) -> Option<(Code, String)> {
        [Code::Nf4, Code::Fp4, Code::Uniform4]
            .map(|code| (code, state_key(name, code)))
            .into_iter()
            .find(|(_, key)| self.tensors.contains_key(key))
    }

    fn raw_bytes(&self, name: &str) -> Result<Bytes> {
        let tensor = self.tensor(name)?;
        match tensor.dtype {
            Dtype::U8 => Ok(tensor.bytes),
            other => Err(self.tensor_error(name, format!("has type {other:?}; U8 is needed"))),
        }
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        match tensor.dtype {
            Dtype::F32 => Ok(Float::F32.decode(&tensor.bytes)),
            other => Err(self.tensor_error(name, format!("has type {other:?}; F32 is needed"))),
        }
    }
}

/// Name of the tensor that marks `weight` as quantised and holds its settings.
pub(crate) fn state_key(weight: &str, code: Code) -> String {
    let owner = if code == Code::Uniform4 { "tailor" } else { "bitsandbytes" };
    format!("{weight}.quant_state.{owner}__{}", code.as_str())
}

/// A pipe or a device in place of a file would be waited for, or read without end.
fn regular(path: &Path) -> Result<()> {
    match std::fs::metadata(path).map_err(Error::io(path))?.is_file() {
        true => Ok(()),
        false => Err(Error::file(path, "is no regular file")),
    }
}

/// A whole file, none larger than the limit.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    regular(path)?;
    let file = File::open(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    let mut bytes = Vec::new();
    if size <= limit {
        // The file may have grown since.
        file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    }
    let size = size.max(bytes.len() as u64);
    if size > limit {
        return Err(Error::file(path, format!("{size} bytes; the limit is {limit}")));
    }
    Ok(bytes)
}

fn read_index(path: &Path) -> Result<HashMap<String, String>> {
    let text = read_bounded(path, MAX_INDEX_BYTES)?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|error| Error::file(path, format!("not an index: {error}")))?;
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        return Err(Error::file(path, format!("names {} shards; 1 to {MAX_SHARDS} are accepted", shards.len())));
    }
    let plain = |name: &str| {
        let is_a_part = !name.contains(['/', '\\', '\0']) && !name.starts_with('.');
        name.ends_with(".safetensors") && is_a_part && name.len() <= MAX_NAME_BYTES
    };
    if let Some(name) = shards.into_iter().find(|name| !plain(name)) {
        return Err(Error::file(path, format!("shard {name:?} is no plain file name ending in .safetensors")));
    }
    Ok(index.weight_map)
}
