//! The zip structures that a wheel uses, read from byte ranges instead of from a whole file.
//!
//! Layout after the PKWARE APPNOTE, 4.3: members (local header, data), then the central directory, then its end record.
//! Zip64 is refused: no wheel of the set needs it.

use anyhow::{Context, Result, bail, ensure};

const END_SIGNATURE: u32 = 0x0605_4b50;
const DIRECTORY_SIGNATURE: u32 = 0x0201_4b50;
const LOCAL_SIGNATURE: u32 = 0x0403_4b50;
const END_LEN: usize = 22;
const DIRECTORY_ENTRY_LEN: usize = 46;
pub const LOCAL_HEADER_LEN: usize = 30;

/// The end record may be followed by a comment of at most 65,535 bytes, so this many bytes always contain it.
pub const TAIL_LEN: u64 = 65_535 + END_LEN as u64;

/// Where the central directory lies in the archive.
#[derive(Debug, PartialEq, Eq)]
pub struct Directory {
    pub offset: u64,
    pub len: u64,
}

/// One member, as the central directory describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub compression: Compression,
    pub compressed_bytes: u64,
    pub size_bytes: u64,
    /// Of the local header, from the start of the archive.
    pub offset: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Stored,
    Deflated,
}

/// Finds the end record in the archive's last bytes.
pub fn find_directory(tail: &[u8]) -> Result<Directory> {
    let start = (0..=tail.len().saturating_sub(END_LEN))
        .rev()
        .find(|&at| u32_at(tail, at) == Some(END_SIGNATURE))
        .context("not a zip archive: no end record in its last bytes")?;
    let len = u32_at(tail, start + 12).context("end record is cut off")?;
    let offset = u32_at(tail, start + 16).context("end record is cut off")?;
    ensure!(offset != u32::MAX, "zip64 archives are not supported");
    Ok(Directory { offset: u64::from(offset), len: u64::from(len) })
}

/// Reads every entry of a central directory, in the directory's order.
pub fn parse_directory(bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (entry, next) =
            parse_entry(bytes, at).with_context(|| format!("central directory, entry {}", entries.len()))?;
        entries.push(entry);
        at = next;
    }
    Ok(entries)
}

fn parse_entry(bytes: &[u8], at: usize) -> Result<(Entry, usize)> {
    let header = bytes.get(at..at + DIRECTORY_ENTRY_LEN).context("cut off")?;
    ensure!(u32_at(header, 0) == Some(DIRECTORY_SIGNATURE), "bad signature");
    let field = |offset| u32_at(header, offset).map(u64::from).context("cut off");
    let short = |offset| u16_at(header, offset).map(usize::from).context("cut off");

    let (name_len, extra_len, comment_len) = (short(28)?, short(30)?, short(32)?);
    let name_at = at + DIRECTORY_ENTRY_LEN;
    let name = bytes.get(name_at..name_at + name_len).context("name is cut off")?;
    let name = String::from_utf8(name.to_vec()).context("name is not UTF-8")?;
    let compression = match short(10)? {
        0 => Compression::Stored,
        8 => Compression::Deflated,
        method => bail!("{name} uses compression method {method}; only 0 (stored) and 8 (deflate) are supported"),
    };
    let (compressed_bytes, size_bytes, offset) = (field(20)?, field(24)?, field(42)?);
    let zip64 = [compressed_bytes, size_bytes, offset].contains(&u64::from(u32::MAX));
    ensure!(!zip64, "{name} needs zip64, which is not supported");

    let next = name_at + name_len + extra_len + comment_len;
    Ok((Entry { name, compression, compressed_bytes, size_bytes, offset }, next))
}

/// Bytes from the start of a member's local header to the start of its data.
pub fn data_offset(local_header: &[u8; LOCAL_HEADER_LEN]) -> Result<u64> {
    ensure!(u32_at(local_header, 0) == Some(LOCAL_SIGNATURE), "bad signature of a local header");
    let name_len = u16_at(local_header, 26).context("cut off")?;
    let extra_len = u16_at(local_header, 28).context("cut off")?;
    Ok(LOCAL_HEADER_LEN as u64 + u64::from(name_len) + u64::from(extra_len))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at + 2)?;
    Some(u16::from_le_bytes(field.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::testzip::TestZip;
    use super::*;

    #[test]
    fn directory_lists_every_member_with_its_place() {
        let zip = TestZip::new().stored("a/one.txt", b"first").deflated("two.bin", &[7; 4096]).finish();
        let directory = find_directory(&zip).unwrap();
        let bytes = &zip[directory.offset as usize..][..directory.len as usize];
        let entries = parse_directory(bytes).unwrap();

        let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["a/one.txt", "two.bin"]);
        assert_eq!((entries[0].offset, entries[0].compressed_bytes, entries[0].size_bytes), (0, 5, 5));
        assert_eq!(entries[1].compression, Compression::Deflated);
        assert!(entries[1].compressed_bytes < entries[1].size_bytes);
    }

    #[test]
    fn data_of_a_member_follows_its_name_and_extra_field() {
        let zip = TestZip::new().stored("a/one.txt", b"first").finish();
        let header: [u8; LOCAL_HEADER_LEN] = zip[..LOCAL_HEADER_LEN].try_into().unwrap();
        let start = data_offset(&header).unwrap() as usize;
        assert_eq!(&zip[start..start + 5], b"first");
    }

    #[test]
    fn end_record_is_found_before_a_comment() {
        let mut zip = TestZip::new().stored("x", b"y").finish();
        let comment = b"a comment";
        let at = zip.len() - 2;
        zip[at..].copy_from_slice(&(comment.len() as u16).to_le_bytes());
        zip.extend_from_slice(comment);
        assert!(find_directory(&zip).is_ok());
    }

    #[test]
    fn bytes_without_an_end_record_are_refused() {
        assert!(find_directory(b"<html>not found</html>, and some more text").is_err());
        assert!(find_directory(b"").is_err());
    }

    #[test]
    fn cut_off_directory_is_refused() {
        let zip = TestZip::new().stored("one", b"1").stored("two", b"2").finish();
        let directory = find_directory(&zip).unwrap();
        let bytes = &zip[directory.offset as usize..][..directory.len as usize - 2];
        let message = format!("{:#}", parse_directory(bytes).unwrap_err());
        assert!(message.contains("entry 1"), "{message}");
    }

    #[test]
    fn unknown_compression_is_refused_by_name() {
        let mut zip = TestZip::new().stored("odd.bin", b"1").finish();
        let directory = find_directory(&zip).unwrap();
        let at = directory.offset as usize;
        zip[at + 10] = 14;
        let message = format!("{:#}", parse_directory(&zip[at..at + directory.len as usize]).unwrap_err());
        assert!(message.contains("odd.bin uses compression method 14"), "{message}");
    }
}
