//! The tensor files of a folder as transformers writes them: `model.safetensors`, or shards with an index.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tailor_quant::Float;

use crate::weight::Weight;
use crate::{Error, Result};

/// More are refused when a folder is read.
const MAX_SHARDS: usize = 1024;

/// Which weights go into one file, in order.
pub(crate) struct Shard<'w, 'a> {
    pub file: String,
    pub weights: Vec<&'w Weight<'a>>,
}

/// Fills one shard after the other; a tensor larger than `limit` has one to itself.
///
/// # Errors
/// More shards than are read back.
pub(crate) fn divide<'w, 'a>(
    weights: impl Iterator<Item = &'w Weight<'a>>,
    dtype: Float,
    limit: u64,
) -> Result<Vec<Shard<'w, 'a>>>
where
    'a: 'w,
{
    let (mut groups, mut size): (Vec<Vec<&Weight<'a>>>, u64) = (vec![Vec::new()], 0);
    for weight in weights {
        let bytes = (weight.elements() * dtype.size()) as u64;
        if size > 0 && size + bytes > limit {
            groups.push(Vec::new());
            size = 0;
        }
        size += bytes;
        groups.last_mut().into_iter().for_each(|group| group.push(weight));
    }
    let count = groups.len();
    if count > MAX_SHARDS {
        let problem = format!("files of {limit} bytes would be {count}; the limit is {MAX_SHARDS}; allow larger ones");
        return Err(Error::value("shard size", problem));
    }
    let named = |(number, weights): (usize, _)| {
        let file = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        Shard { file, weights }
    };
    Ok(groups.into_iter().enumerate().map(named).collect())
}

/// Writes `model.safetensors.index.json` where there is more than one file.
pub(crate) fn write_index(folder: &Path, shards: &[Shard<'_, '_>], dtype: Float) -> Result<()> {
    if shards.len() < 2 {
        return Ok(());
    }
    let parameters: usize = shards.iter().flat_map(|shard| &shard.weights).map(|weight| weight.elements()).sum();
    let entries = shards.iter().flat_map(|shard| shard.weights.iter().map(|weight| (&weight.name, &shard.file)));
    let weight_map: Map<String, Value> =
        entries.map(|(name, file)| (name.clone(), Value::from(file.as_str()))).collect();
    let metadata = json!({ "total_parameters": parameters, "total_size": parameters * dtype.size() });
    let index = json!({ "metadata": metadata, "weight_map": weight_map });
    let path = folder.join("model.safetensors.index.json");
    fs::write(&path, format!("{index:#}\n")).map_err(Error::io(&path))
}

/// One safetensors file, its tensors written in the order that was announced.
pub(crate) struct ShardWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl ShardWriter {
    pub fn create(folder: &Path, shard: &Shard<'_, '_>, dtype: Float) -> Result<Self> {
        let mut header = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
        let mut start = 0;
        let name = match dtype {
            Float::F32 => "F32",
            Float::Bf16 => "BF16",
            Float::F16 => "F16",
        };
        for weight in &shard.weights {
            let end = start + weight.elements() * dtype.size();
            let entry = json!({ "dtype": name, "shape": weight.shape, "data_offsets": [start, end] });
            header.insert(weight.name.clone(), entry);
            start = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let path = folder.join(&shard.file);
        let file = File::options().write(true).create_new(true).open(&path).map_err(Error::io(&path))?;
        let mut writer = Self { path, file: BufWriter::with_capacity(1 << 20, file) };
        writer.put(&(header.len() as u64).to_le_bytes())?;
        writer.put(&header)?;
        Ok(writer)
    }

    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.path))
    }

    pub fn finish(mut self) -> Result<()> {
        self.file.flush().map_err(Error::io(&self.path))?;
        self.file.get_ref().sync_all().map_err(Error::io(&self.path))
    }
}
