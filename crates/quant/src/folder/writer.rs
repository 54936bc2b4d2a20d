//! A safetensors file written in one pass: room for the header first, tensors as they come, then the header.
//!
//! Offsets are laid out beforehand, widest type first, so that every tensor is aligned in the map. Only the length of a
//! `quant_state` is not known beforehand; those come last and are kept in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

use crate::checkpoint::state_key;
use crate::{Code, Error, NESTED_BLOCK, Result, TensorRef};

/// A tensor of the file to be.
pub(super) struct Slot {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// `None`: a `quant_state`, whose length shows when it is written.
    size: Option<usize>,
}

impl Slot {
    /// The tensors that `tensor` becomes: itself, or the parts of a 4-bit weight.
    pub(super) fn of(name: &str, tensor: &TensorRef, code: Option<(Code, bool)>, blocksize: usize) -> Vec<Self> {
        let slot = |suffix: &str, dtype: Dtype, shape: Vec<usize>| {
            let size = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            Self { name: format!("{name}{suffix}"), dtype, shape, size: Some(size) }
        };
        let Some((code, double)) = code else {
            let mut same = slot("", tensor.dtype, tensor.shape.clone());
            same.size = Some(tensor.bytes.len());
            return vec![same];
        };
        let elements = tensor.elements();
        let blocks = elements.div_ceil(blocksize);
        let mut slots = vec![slot("", Dtype::U8, vec![elements.div_ceil(2), 1])];
        match (code, double) {
            (Code::Uniform4, _) => {
                slots.push(slot(".width", Dtype::F32, vec![blocks]));
                slots.push(slot(".minimum", Dtype::F32, vec![blocks]));
            }
            (_, false) => slots.push(slot(".absmax", Dtype::F32, vec![blocks])),
            (_, true) => {
                slots.push(slot(".absmax", Dtype::U8, vec![blocks]));
                slots.push(slot(".nested_absmax", Dtype::F32, vec![blocks.div_ceil(NESTED_BLOCK)]));
                slots.push(slot(".nested_quant_map", Dtype::F32, vec![256]));
            }
        }
        if code != Code::Uniform4 {
            slots.push(slot(".quant_map", Dtype::F32, vec![16]));
        }
        slots.push(Self { name: state_key(name, code), dtype: Dtype::U8, shape: Vec::new(), size: None });
        slots
    }
}

pub(super) struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    /// Room before the data: eight bytes of length and the header.
    data_start: u64,
    fixed: BTreeMap<String, (Dtype, Vec<usize>, u64, usize)>,
    fixed_bytes: u64,
    states: BTreeMap<String, Vec<u8>>,
    pending: usize,
}

impl Writer {
    pub(super) fn create(path: &Path, mut slots: Vec<Slot>) -> Result<Self> {
        let file = File::options().write(true).create_new(true).open(path).map_err(Error::io(path))?;
        slots.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
        let pending = slots.len();
        let (mut fixed, mut offset) = (BTreeMap::new(), 0u64);
        // Every entry of the header at its longest, for offsets of up to 20 digits.
        let mut header_room = 256usize;
        for slot in slots {
            header_room += slot.name.len() * 6 + slot.shape.len() * 22 + 128;
            if let Some(size) = slot.size {
                fixed.insert(slot.name, (slot.dtype, slot.shape, offset, size));
                offset += size as u64;
            }
        }
        let data_start = (8 + header_room as u64).next_multiple_of(4096);
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(Self {
            path: path.to_owned(),
            file,
            data_start,
            fixed,
            fixed_bytes: offset,
            states: BTreeMap::new(),
            pending,
        })
    }

    pub(super) fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.pending = self.pending.saturating_sub(1);
        let Some((_, _, offset, size)) = self.fixed.get(name) else {
            self.states.insert(name.to_owned(), bytes.to_vec());
            return Ok(());
        };
        if bytes.len() != *size {
            return Err(Error::file(&self.path, format!("{name:?} has {} bytes, {size} were laid out", bytes.len())));
        }
        let at = SeekFrom::Start(self.data_start + offset);
        self.file.seek(at).and_then(|_| self.file.write_all(bytes)).map_err(Error::io(&self.path))
    }

    /// Writes the states and the header; gives the file's length.
    pub(super) fn finish(mut self) -> Result<u64> {
        if self.pending > 0 {
            return Err(Error::file(&self.path, format!("{} tensors were not written", self.pending)));
        }
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        let entry = |dtype: Dtype, shape: &[usize], start: u64, end: u64| -> Value {
            json!({ "dtype": format!("{dtype:?}"), "shape": shape, "data_offsets": [start, end] })
        };
        for (name, (dtype, shape, offset, size)) in &self.fixed {
            header.insert(name.clone(), entry(*dtype, shape, *offset, offset + *size as u64));
        }
        let write = |file: &mut BufWriter<File>, at: u64, bytes: &[u8]| {
            file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes)).map_err(Error::io(&self.path))
        };
        let mut end = self.fixed_bytes;
        for (name, bytes) in &self.states {
            header.insert(name.clone(), entry(Dtype::U8, &[bytes.len()], end, end + bytes.len() as u64));
            write(&mut self.file, self.data_start + end, bytes)?;
            end += bytes.len() as u64;
        }
        let room = (self.data_start - 8) as usize;
        let mut text = Value::Object(header).to_string().into_bytes();
        if text.len() > room {
            return Err(Error::file(&self.path, format!("header has {} bytes, room was left for {room}", text.len())));
        }
        text.resize(room, b' ');
        write(&mut self.file, 0, &(room as u64).to_le_bytes())?;
        write(&mut self.file, 8, &text)?;
        self.file.flush().map_err(Error::io(&self.path))?;
        self.file.get_ref().sync_all().map_err(Error::io(&self.path))?;
        Ok(self.data_start + end)
    }
}
