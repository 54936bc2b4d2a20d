//! CRC-32C (Castagnoli's polynomial, RFC 3720 §12.1), bit-reversed, a byte at a time over a table.

const POLYNOMIAL: u32 = 0x82f6_3b78;
const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| (crc >> 8) ^ TABLE[usize::from((crc as u8) ^ byte)])
}

/// The checksum as a record carries it: rotated and shifted, so that a checksum over bytes that hold checksums stays good.
pub fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_rfc() {
        // RFC 3720, B.4.
        let (up, down): (Vec<u8>, Vec<u8>) = ((0..32).collect(), (0..32).rev().collect());
        for (bytes, checksum) in
            [(&[0; 32][..], 0x8a91_36aa), (&[0xff; 32], 0x62a8_ab43), (&up, 0x46dd_794e), (&down, 0x113f_db5c)]
        {
            assert_eq!(crc32c(bytes), checksum, "{bytes:?}");
        }
        assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the check value of catalogues");
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn a_mask_is_undone_by_its_inverse() {
        let mask = masked(b"123456789");
        assert_eq!(mask.wrapping_sub(0xa282_ead8).rotate_left(15), 0xe306_9283);
        assert_eq!(masked(b""), 0xa282_ead8);
    }
}
