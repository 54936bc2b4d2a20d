//! What a Parquet file makes room for, looked at before the library that reads it makes it: the depth of its schema, and of each page
//! the bytes that it says it has unpacked, and of a dictionary its entries (Apache Parquet format 2.12, `parquet.thrift`).

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};

use parquet::basic::Compression;
use parquet::file::metadata::ColumnChunkMetaData;

use super::thrift::{Kind, Reader};
use super::{Error, Result, damaged};

const MAGIC: &[u8; 4] = b"PAR1";
/// A footer that is encrypted.
const SECRET: &[u8; 4] = b"PARE";
const MAX_FOOTER_BYTES: u64 = 64 << 20;
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Groups and columns, and how deep they may be nested: a conversation with tool calls has about twelve.
const MAX_SCHEMA: u64 = 10_000;
const MAX_SCHEMA_DEPTH: usize = 32;
/// Writers make pages of 1 MiB, and some of 100.
const MAX_PAGE_BYTES: u64 = 128 << 20;
/// Each takes 32 bytes, also an empty text.
const MAX_DICTIONARY: i64 = 8 << 20;

/// # Errors
/// It is no Parquet file, an encrypted one, or one whose schema nobody would write.
pub(super) fn check_footer(file: &mut File) -> Result<()> {
    let size = file.seek(SeekFrom::End(0))?;
    if size == 0 {
        return Err(Error::Empty);
    }
    let mut tail = [0; 8];
    let has_tail = size >= 12;
    if has_tail {
        file.seek(SeekFrom::Start(size - 8))?;
        file.read_exact(&mut tail)?;
    }
    let [a, b, c, d, magic @ ..] = tail;
    if magic == *SECRET {
        return Err(damaged("it is encrypted; write it without encryption"));
    }
    if !has_tail || magic != *MAGIC {
        return Err(damaged("it does not end as a Parquet file does; is it one, and whole?"));
    }
    let length = u64::from(u32::from_le_bytes([a, b, c, d]));
    if length > MAX_FOOTER_BYTES || length + 12 > size {
        return Err(damaged(format!("its footer says that it has {length} bytes; the limit is {MAX_FOOTER_BYTES}")));
    }
    file.seek(SeekFrom::Start(size - 8 - length))?;
    let mut footer = Reader::new(BufReader::new(file), length);
    let mut has_schema = false;
    footer
        .fields(|footer, id, kind| {
            if (id, kind) != (2, Kind::LIST) {
                return Ok(false);
            }
            has_schema = true;
            check_schema(footer)?;
            Ok(true)
        })
        .map_err(|error| damaged(format!("its footer: {error}")))?;
    if has_schema { Ok(()) } else { Err(damaged("it has no schema")) }
}

/// The schema's elements, each group before what is in it.
fn check_schema<R: std::io::Read>(footer: &mut Reader<R>) -> std::io::Result<()> {
    let invalid = |problem: String| std::io::Error::new(std::io::ErrorKind::InvalidData, problem);
    let (kind, count) = footer.list()?;
    if kind != Kind::STRUCT || count > MAX_SCHEMA {
        return Err(invalid(format!("a schema of {count} elements; the limit is {MAX_SCHEMA}")));
    }
    // Of each group that is open, how many of its elements are still to come.
    let mut open: Vec<i64> = Vec::new();
    for _ in 0..count {
        let mut children = 0;
        footer.fields(|footer, id, kind| {
            let is_count = (id, kind) == (5, Kind::INTEGER);
            if is_count {
                children = footer.integer()?;
            }
            Ok(is_count)
        })?;
        while open.last() == Some(&0) {
            open.pop();
        }
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        if children > 0 {
            open.push(children);
        }
        if open.len() > MAX_SCHEMA_DEPTH {
            return Err(invalid(format!("columns nested deeper than {MAX_SCHEMA_DEPTH}")));
        }
    }
    Ok(())
}

/// One column of one group of rows.
///
/// # Errors
/// It is packed by a codec that is not taken, lies outside of the file, or has a page that is too large.
pub(super) fn check_column(file: &mut File, size: u64, column: &ColumnChunkMetaData) -> Result<()> {
    let name = column.column_path().string();
    match column.compression() {
        // Those unpack no more than the page says.
        Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_) => {}
        other => {
            let problem =
                format!("column {name:?} is packed by {other}; write the file with snappy, zstd or no compression");
            return Err(damaged(problem));
        }
    }
    let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
    let range = u64::try_from(start).ok().zip(u64::try_from(column.compressed_size()).ok());
    let range = range.and_then(|(start, length)| Some((start, start.checked_add(length)?)));
    let Some((mut at, end)) = range.filter(|(_, end)| *end <= size) else {
        return Err(damaged(format!("column {name:?} lies outside of it")));
    };
    while at < end {
        file.seek(SeekFrom::Start(at))?;
        let limit = (end - at).min(MAX_HEADER_BYTES);
        let mut header = Reader::new(BufReader::new(&mut *file), limit);
        let page =
            Page::read(&mut header).map_err(|error| damaged(format!("column {name:?}, a page's header: {error}")))?;
        page.check().map_err(|problem| damaged(format!("column {name:?}: {problem}")))?;
        at += header.taken() + page.packed.unsigned_abs();
    }
    Ok(())
}

/// The largest that a page's header says of each.
#[derive(Debug, Default, PartialEq, Eq)]
struct Page {
    unpacked: i64,
    packed: i64,
    entries: i64,
}

impl Page {
    fn read<R: std::io::Read>(header: &mut Reader<R>) -> std::io::Result<Self> {
        let mut page = Self::default();
        header.fields(|header, id, kind| {
            match (id, kind) {
                (2, Kind::INTEGER) => page.unpacked = largest(page.unpacked, header.integer()?),
                (3, Kind::INTEGER) => page.packed = largest(page.packed, header.integer()?),
                // A dictionary's own header.
                (7, Kind::STRUCT) => header.fields(|header, id, kind| {
                    let is_count = (id, kind) == (1, Kind::INTEGER);
                    if is_count {
                        page.entries = largest(page.entries, header.integer()?);
                    }
                    Ok(is_count)
                })?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(page)
    }

    fn check(&self) -> Result<(), String> {
        let Self { unpacked, packed, entries } = self;
        let bytes = largest(*unpacked, *packed);
        if *unpacked < 0 || *packed < 0 || bytes.unsigned_abs() > MAX_PAGE_BYTES {
            return Err(format!("a page of {bytes} bytes; the limit is {MAX_PAGE_BYTES}, so write smaller ones"));
        }
        if !(0..=MAX_DICTIONARY).contains(entries) {
            return Err(format!(
                "a dictionary of {entries} entries; the limit is {MAX_DICTIONARY}, so write without one"
            ));
        }
        Ok(())
    }
}

/// By magnitude: a field that is there twice hides nothing.
fn largest(a: i64, b: i64) -> i64 {
    if b.unsigned_abs() > a.unsigned_abs() { b } else { a }
}
