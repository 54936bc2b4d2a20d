//! The bytes of a GGUF file, version 3 (ggml's docs/gguf.md): a header, typed metadata, one entry for each tensor, and
//! after padding the tensors themselves. All numbers are little-endian.

use tailor_quant::Float;

pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
pub(crate) const VERSION: u32 = 3;
/// Where a tensor may begin, counted from the first one; the format's own default.
pub(crate) const ALIGNMENT: u64 = 32;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Array(Array),
}

/// Values of one type.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    Text(Vec<String>),
}

/// A tensor to be, as the header announces it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorInfo {
    pub name: String,
    /// As PyTorch has it, slowest first; the file has it the other way round.
    pub shape: Vec<usize>,
    pub float: Float,
}

impl TensorInfo {
    pub fn size_bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.float.size() as u64
    }
}

/// `ggml_type`.
pub(crate) fn tensor_type(float: Float) -> u32 {
    match float {
        Float::F32 => 0,
        Float::F16 => 1,
        Float::Bf16 => 30,
    }
}

/// `general.file_type`: what most tensors are.
pub(crate) fn file_type(float: Float) -> u32 {
    match float {
        Float::F32 => 0,
        Float::F16 => 1,
        Float::Bf16 => 32,
    }
}

pub(crate) fn header(metadata: &[(String, Value)], tensors: &[TensorInfo]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut out, key);
        out.extend(value.type_number().to_le_bytes());
        value.put(&mut out);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|side| out.extend((*side as u64).to_le_bytes()));
        out.extend(tensor_type(tensor.float).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (offset + tensor.size_bytes()).next_multiple_of(ALIGNMENT);
    }
    out.resize((out.len() as u64).next_multiple_of(ALIGNMENT) as usize, 0);
    out
}

impl Value {
    fn type_number(&self) -> u32 {
        match self {
            Self::U32(_) => 4,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::Array(_) => 9,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::F32(value) => out.extend(value.to_le_bytes()),
            Self::Bool(value) => out.push(u8::from(*value)),
            Self::Text(value) => put_text(out, value),
            Self::Array(array) => array.put(out),
        }
    }
}

impl Array {
    fn put(&self, out: &mut Vec<u8>) {
        let mut head = |type_number: u32, count: usize| {
            out.extend(type_number.to_le_bytes());
            out.extend((count as u64).to_le_bytes());
        };
        match self {
            Self::I32(values) => {
                head(5, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::F32(values) => {
                head(6, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::Bool(values) => {
                head(7, values.len());
                out.extend(values.iter().map(|value| u8::from(*value)));
            }
            Self::Text(values) => {
                head(8, values.len());
                values.iter().for_each(|value| put_text(out, value));
            }
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}
