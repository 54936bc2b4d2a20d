//! Writes small zip archives for the tests of this folder.

use std::io::Write;

use flate2::Compression;
use flate2::write::DeflateEncoder;

#[derive(Default)]
pub struct TestZip {
    archive: Vec<u8>,
    directory: Vec<u8>,
}

impl TestZip {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn stored(self, name: &str, data: &[u8]) -> Self {
        self.member(name, 0, data, data.len())
    }

    pub fn deflated(self, name: &str, data: &[u8]) -> Self {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).unwrap();
        self.member(name, 8, &encoder.finish().unwrap(), data.len())
    }

    fn member(mut self, name: &str, method: u16, packed: &[u8], size: usize) -> Self {
        let offset = self.archive.len() as u32;
        let extra = [9, 9, 0, 0];
        let mut fields = Vec::new();
        for short in [20, 0, method, 0, 0] {
            fields.extend_from_slice(&short.to_le_bytes());
        }
        fields.extend_from_slice(&0u32.to_le_bytes());
        fields.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        fields.extend_from_slice(&(size as u32).to_le_bytes());
        fields.extend_from_slice(&(name.len() as u16).to_le_bytes());

        self.archive.extend_from_slice(&0x0403_4b50u32.to_le_bytes());
        self.archive.extend_from_slice(&fields);
        self.archive.extend_from_slice(&(extra.len() as u16).to_le_bytes());
        self.archive.extend_from_slice(name.as_bytes());
        self.archive.extend_from_slice(&extra);
        self.archive.extend_from_slice(packed);

        self.directory.extend_from_slice(&0x0201_4b50u32.to_le_bytes());
        self.directory.extend_from_slice(&20u16.to_le_bytes());
        self.directory.extend_from_slice(&fields);
        self.directory.extend_from_slice(&[0; 12]);
        self.directory.extend_from_slice(&offset.to_le_bytes());
        self.directory.extend_from_slice(name.as_bytes());
        self
    }

    pub fn finish(mut self) -> Vec<u8> {
        let offset = self.archive.len() as u32;
        let len = self.directory.len() as u32;
        self.archive.append(&mut self.directory);
        self.archive.extend_from_slice(&0x0605_4b50u32.to_le_bytes());
        self.archive.extend_from_slice(&[0; 8]);
        self.archive.extend_from_slice(&len.to_le_bytes());
        self.archive.extend_from_slice(&offset.to_le_bytes());
        self.archive.extend_from_slice(&[0; 2]);
        self.archive
    }
}
