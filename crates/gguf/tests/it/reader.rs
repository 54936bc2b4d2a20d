//! A reader of GGUF files that shares nothing with the writer, by ggml's docs/gguf.md.

use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    Number(f64),
    Bool(bool),
    Text(String),
    List(Vec<Found>),
}

#[derive(Debug)]
pub struct Tensor {
    /// As in PyTorch, slowest first.
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
    pub kind: u32,
}

#[derive(Debug)]
pub struct Gguf {
    pub metadata: BTreeMap<String, Found>,
    pub tensors: BTreeMap<String, Tensor>,
}

struct Cursor<'a>(&'a [u8], usize);

impl Cursor<'_> {
    fn take(&mut self, count: usize) -> &[u8] {
        self.1 += count;
        &self.0[self.1 - count..self.1]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> usize {
        u64::from_le_bytes(self.take(8).try_into().unwrap()) as usize
    }

    fn text(&mut self) -> String {
        let length = self.u64();
        String::from_utf8(self.take(length).to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> Found {
        match kind {
            4 => Found::Number(f64::from(self.u32())),
            5 => Found::Number(f64::from(self.u32() as i32)),
            6 => Found::Number(f64::from(f32::from_bits(self.u32()))),
            7 => Found::Bool(self.take(1)[0] == 1),
            8 => Found::Text(self.text()),
            9 => {
                let (kind, count) = (self.u32(), self.u64());
                Found::List((0..count).map(|_| self.value(kind)).collect())
            }
            other => panic!("type {other}"),
        }
    }
}

impl Gguf {
    pub fn read(bytes: &[u8]) -> Self {
        let mut cursor = Cursor(bytes, 0);
        assert_eq!(cursor.take(4), b"GGUF");
        assert_eq!(cursor.u32(), 3);
        let (tensors, pairs) = (cursor.u64(), cursor.u64());
        let mut metadata = BTreeMap::new();
        for _ in 0..pairs {
            let (key, kind) = (cursor.text(), cursor.u32());
            assert!(metadata.insert(key.clone(), cursor.value(kind)).is_none(), "{key} twice");
        }
        let mut infos = Vec::new();
        for _ in 0..tensors {
            let (name, sides) = (cursor.text(), cursor.u32());
            let mut shape: Vec<usize> = (0..sides).map(|_| cursor.u64()).collect();
            shape.reverse();
            infos.push((name, shape, cursor.u32(), cursor.u64()));
        }
        let data = cursor.1.next_multiple_of(32);
        let mut end = data;
        let mut tensors = BTreeMap::new();
        for (name, shape, kind, offset) in infos {
            assert!(offset % 32 == 0 && data + offset == end.next_multiple_of(32), "{name} lies at {offset}");
            let count: usize = shape.iter().product();
            let size = if kind == 0 { 4 } else { 2 };
            let stored = &bytes[data + offset..][..count * size];
            let values = stored.chunks_exact(size).map(|value| number(kind, value)).collect();
            end = data + offset + count * size;
            assert!(tensors.insert(name.clone(), Tensor { shape, values, kind }).is_none(), "{name} twice");
        }
        assert_eq!(bytes.len(), end.next_multiple_of(32), "nothing behind the last tensor but padding");
        Self { metadata, tensors }
    }

    pub fn text(&self, key: &str) -> &str {
        match &self.metadata[key] {
            Found::Text(text) => text,
            other => panic!("{key}: {other:?}"),
        }
    }

    pub fn number(&self, key: &str) -> f64 {
        match &self.metadata[key] {
            Found::Number(number) => *number,
            other => panic!("{key}: {other:?}"),
        }
    }

    pub fn list(&self, key: &str) -> &[Found] {
        match &self.metadata[key] {
            Found::List(list) => list,
            other => panic!("{key}: {other:?}"),
        }
    }
}

fn number(kind: u32, bytes: &[u8]) -> f32 {
    match kind {
        0 => f32::from_le_bytes(bytes.try_into().unwrap()),
        1 => half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
        30 => f32::from_bits(u32::from(u16::from_le_bytes(bytes.try_into().unwrap())) << 16),
        other => panic!("type {other}"),
    }
}
