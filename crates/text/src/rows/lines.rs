//! Physical lines of a stream, never more than a limit of one in memory.

use std::io::{BufRead, BufReader, Read};

use super::RowLimits;
use crate::error::{Error, Result};

const BUFFER_BYTES: usize = 64 << 10;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Line(Vec<u8>),
    /// Longer than the limit; its bytes were passed over.
    TooLong {
        bytes: u64,
    },
}

pub(super) struct Lines<R> {
    reader: BufReader<R>,
    limits: RowLimits,
    line: u64,
    /// Pieces to be read again, the next one last.
    pushed_back: Vec<(u64, Piece)>,
}

impl<R: Read> Lines<R> {
    /// Looks at the first bytes: skips a UTF-8 byte order mark, refuses what is not text.
    pub fn open(reader: R, limits: RowLimits) -> Result<Self> {
        let mut lines =
            Self { reader: BufReader::with_capacity(BUFFER_BYTES, reader), limits, line: 0, pushed_back: Vec::new() };
        let mut head = Vec::new();
        // A reader may return less than asked for, so the mark is looked for in what `read_to_end` collects.
        lines.reader.by_ref().take(4).read_to_end(&mut head)?;
        if head.is_empty() {
            return Err(Error::Empty);
        }
        if let Some((kind, remedy)) = not_text(&head) {
            return Err(Error::NotText { kind: kind.to_owned(), remedy: remedy.to_owned() });
        }
        if head.contains(&0) {
            return Err(binary(1));
        }
        let head = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&head).to_vec();
        lines.take_head(head)?;
        Ok(lines)
    }

    /// The first four bytes may hold line ends; they are cut like the rest.
    fn take_head(&mut self, head: Vec<u8>) -> Result<()> {
        let mut rest = head.as_slice();
        let mut pieces = Vec::new();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.line += 1;
            pieces.push((self.line, Piece::Line(without_return(&rest[..end]))));
            rest = &rest[end + 1..];
        }
        let started = rest.to_vec();
        if let Some(piece) = self.read_piece(started)? {
            pieces.push(piece);
        }
        pieces.reverse();
        self.pushed_back = pieces;
        Ok(())
    }

    pub fn limits(&self) -> RowLimits {
        self.limits
    }

    /// The next line without its end, and its number from 1.
    pub fn next(&mut self) -> Result<Option<(u64, Piece)>> {
        match self.pushed_back.pop() {
            Some(piece) => Ok(Some(piece)),
            None => self.read_piece(Vec::new()),
        }
    }

    /// Gives pieces back, to be read again in the same order.
    pub fn push_back(&mut self, pieces: Vec<(u64, Piece)>) {
        self.pushed_back.extend(pieces.into_iter().rev());
    }

    fn read_piece(&mut self, mut bytes: Vec<u8>) -> Result<Option<(u64, Piece)>> {
        let mut length = bytes.len() as u64;
        let mut ended = false;
        while !ended {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if chunk.is_empty() {
                break;
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            ended = end.is_some();
            let part = &chunk[..end.unwrap_or(chunk.len())];
            length += part.len() as u64;
            let room = (self.limits.max_line_bytes + 1).saturating_sub(bytes.len());
            bytes.extend_from_slice(&part[..part.len().min(room)]);
            let nul = part.contains(&0);
            let used = part.len() + usize::from(ended);
            self.reader.consume(used);
            if nul {
                return Err(binary(self.line + 1));
            }
            if length > self.limits.max_skipped_bytes {
                return Err(Error::EndlessLine { line: self.line + 1, limit: self.limits.max_skipped_bytes });
            }
        }
        if !ended && length == 0 {
            return Ok(None);
        }
        self.line += 1;
        // A return before the line's end is no part of it, so it may exceed the limit by that one byte.
        let bytes = without_return(&bytes);
        if bytes.len() > self.limits.max_line_bytes {
            return Ok(Some((self.line, Piece::TooLong { bytes: length })));
        }
        if bytes.contains(&0) {
            return Err(binary(self.line));
        }
        Ok(Some((self.line, Piece::Line(bytes))))
    }
}

fn without_return(line: &[u8]) -> Vec<u8> {
    line.strip_suffix(b"\r").unwrap_or(line).to_vec()
}

fn binary(line: u64) -> Error {
    Error::NotText {
        kind: format!("binary (line {line} holds a zero byte)"),
        remedy: "save it as CSV or JSONL in UTF-8".to_owned(),
    }
}

fn not_text(head: &[u8]) -> Option<(&'static str, &'static str)> {
    const UTF16: &str = "convert it to UTF-8, e.g. iconv -f UTF-16 -t UTF-8";
    match head {
        [0xFF, 0xFE, 0, 0] | [0, 0, 0xFE, 0xFF] => {
            Some(("UTF-32", "convert it to UTF-8, e.g. iconv -f UTF-32 -t UTF-8"))
        }
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => Some(("UTF-16", UTF16)),
        // No mark, yet every second byte of the first two letters is zero.
        [first, 0, second, 0] if *first != 0 && *second != 0 => Some(("UTF-16", UTF16)),
        [0, first, 0, second] if *first != 0 && *second != 0 => Some(("UTF-16", UTF16)),
        b"PK\x03\x04" => Some(("a zip archive or a spreadsheet", "export the sheet as CSV in UTF-8")),
        [0x1F, 0x8B, ..] => Some(("gzip", "unpack it first")),
        b"PAR1" => Some(("Parquet", "export it as JSONL")),
        b"%PDF" => Some(("a PDF", "extract its rows as CSV or JSONL")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max_line_bytes: usize) -> RowLimits {
        RowLimits { max_line_bytes, max_skipped_bytes: 1000, ..RowLimits::default() }
    }

    fn all(bytes: &[u8], max: usize) -> Vec<(u64, Piece)> {
        let mut lines = Lines::open(bytes, limits(max)).expect("text");
        std::iter::from_fn(|| lines.next().expect("readable")).collect()
    }

    fn line(number: u64, text: &str) -> (u64, Piece) {
        (number, Piece::Line(text.as_bytes().to_vec()))
    }

    #[test]
    fn lines_end_at_newlines_and_at_the_end_of_the_file() {
        assert_eq!(all(b"ab\r\ncd\n\nlast", 10), [line(1, "ab"), line(2, "cd"), line(3, ""), line(4, "last")]);
        assert_eq!(all(b"\n\n\na", 10), [line(1, ""), line(2, ""), line(3, ""), line(4, "a")]);
        assert_eq!(all(b"a\n", 10), [line(1, "a")]);
        assert_eq!(all(b"\xEF\xBB\xBFa\nb", 10), [line(1, "a"), line(2, "b")]);
    }

    #[test]
    fn a_line_over_the_limit_is_passed_over_and_counted() {
        assert_eq!(
            all(b"12345\n123456\n1234\r\n", 5),
            [line(1, "12345"), (2, Piece::TooLong { bytes: 6 }), line(3, "1234")]
        );
    }

    #[test]
    fn pieces_given_back_are_read_again_in_order() {
        let mut lines = Lines::open(&b"a\nb\nc\n"[..], limits(9)).expect("text");
        let (first, second) = (lines.next().expect("a").expect("a"), lines.next().expect("b").expect("b"));
        lines.push_back(vec![first, second]);
        let rest: Vec<_> = std::iter::from_fn(|| lines.next().expect("readable")).collect();
        assert_eq!(rest, [line(1, "a"), line(2, "b"), line(3, "c")]);
    }

    /// Gives one byte again and again, and counts how often it was asked.
    struct Endless<'a>(&'a mut u64);

    impl Read for Endless<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            *self.0 += buffer.len() as u64;
            buffer.fill(b'x');
            Ok(buffer.len())
        }
    }

    #[test]
    fn a_line_without_end_is_refused_soon() {
        let mut read = 0;
        let limits = RowLimits { max_line_bytes: 1000, max_skipped_bytes: 1 << 20, ..RowLimits::default() };
        let error = Lines::open(Endless(&mut read), limits).err().expect("endless");
        assert!(matches!(error, Error::EndlessLine { line: 1, .. }), "{error}");
        assert!(read <= (1 << 20) + 2 * BUFFER_BYTES as u64, "read {read} bytes of an endless line");
    }

    #[test]
    fn what_is_not_text_is_refused_by_its_kind() {
        let with_nul: &[u8] = b"id,text\n1,a\0b\n";
        for (bytes, kind) in [
            (&b"\xFF\xFEi\0d\0"[..], "UTF-16"),
            (b"\xFE\xFF\0i\0d", "UTF-16"),
            (b"i\0d\0,\0", "UTF-16"),
            (b"\xFF\xFE\0\0i\0\0\0", "UTF-32"),
            (b"PK\x03\x04xlsx", "spreadsheet"),
            (b"\x1F\x8B\x08\0", "gzip"),
            (b"PAR1....", "Parquet"),
            (with_nul, "line 2 holds a zero byte"),
        ] {
            let outcome = Lines::open(bytes, limits(100)).and_then(|mut lines| {
                while lines.next()?.is_some() {}
                Ok(())
            });
            let error = outcome.expect_err(kind);
            assert!(error.to_string().contains(kind), "{kind}: {error}");
        }
        assert!(matches!(Lines::open(&b""[..], limits(9)), Err(Error::Empty)));
    }
}
