//! Framing: length, checksum of the length, bytes, checksum of the bytes; numbers little-endian (the TFRecord format).

use crate::crc32c::masked;

pub fn frame(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut framed = Vec::with_capacity(bytes.len() + 16);
    framed.extend_from_slice(&length);
    framed.extend_from_slice(&masked(&length).to_le_bytes());
    framed.extend_from_slice(bytes);
    framed.extend_from_slice(&masked(bytes).to_le_bytes());
    framed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_its_length_and_two_checksums_around_the_bytes() {
        let framed = frame(b"abc");
        assert_eq!(framed.len(), 8 + 4 + 3 + 4);
        assert_eq!(framed[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(framed[8..12], masked(&framed[..8]).to_le_bytes());
        assert_eq!(&framed[12..15], b"abc");
        assert_eq!(framed[15..], masked(b"abc").to_le_bytes());
    }
}
