//! As much of Thrift's compact protocol as it takes to see how large things are before anybody makes room for them.

use std::io::{self, Read};

/// Structures, lists and maps in one another.
const MAX_DEPTH: usize = 16;
/// Elements of all lists and maps of one document together.
const MAX_ELEMENTS: u64 = 4 << 20;

/// A document that is read front to back and counted.
pub(super) struct Reader<R> {
    input: R,
    taken: u64,
    limit: u64,
    elements: u64,
}

/// What stands before a value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind(u8);

impl Kind {
    const TRUE: Self = Self(1);
    const FALSE: Self = Self(2);
    const BYTE: Self = Self(3);
    pub const INTEGER: Self = Self(5);
    const DOUBLE: Self = Self(7);
    const BINARY: Self = Self(8);
    pub const LIST: Self = Self(9);
    const SET: Self = Self(10);
    const MAP: Self = Self(11);
    pub const STRUCT: Self = Self(12);
    const UUID: Self = Self(13);
}

fn broken(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

impl<R: Read> Reader<R> {
    /// Of a document of `limit` bytes at most.
    pub fn new(input: R, limit: u64) -> Self {
        Self { input, taken: 0, limit, elements: 0 }
    }

    /// Bytes that were read.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    fn take(&mut self, count: u64) -> io::Result<()> {
        self.taken = self
            .taken
            .checked_add(count)
            .filter(|taken| *taken <= self.limit)
            .ok_or_else(|| broken(format!("more than {} bytes where a header should be", self.limit)))?;
        Ok(())
    }

    fn byte(&mut self) -> io::Result<u8> {
        self.take(1)?;
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn skip_bytes(&mut self, count: u64) -> io::Result<()> {
        self.take(count)?;
        let skipped = io::copy(&mut self.input.by_ref().take(count), &mut io::sink())?;
        if skipped < count { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(broken("a number of more than 64 bits"))
    }

    /// A signed number, of whatever width.
    pub fn integer(&mut self) -> io::Result<i64> {
        let zigzag = self.varint()?;
        Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }

    /// The elements' kind and their number.
    pub fn list(&mut self) -> io::Result<(Kind, u64)> {
        let header = self.byte()?;
        let count = if header >> 4 == 15 { self.varint()? } else { u64::from(header >> 4) };
        self.count(count)?;
        Ok((Kind(header & 15), count))
    }

    fn count(&mut self, elements: u64) -> io::Result<()> {
        self.elements = self.elements.saturating_add(elements);
        if self.elements > MAX_ELEMENTS {
            return Err(broken(format!("lists of more than {MAX_ELEMENTS} elements")));
        }
        Ok(())
    }

    /// Gives each field of a structure to `visit`, which reads its value and says so, or leaves it.
    pub fn fields(&mut self, mut visit: impl FnMut(&mut Self, i64, Kind) -> io::Result<bool>) -> io::Result<()> {
        let mut id = 0;
        while let Some((next, kind)) = self.field(id)? {
            id = next;
            if !visit(self, id, kind)? {
                self.skip(kind, 0)?;
            }
        }
        Ok(())
    }

    fn field(&mut self, before: i64) -> io::Result<Option<(i64, Kind)>> {
        let header = self.byte()?;
        if header == 0 {
            return Ok(None);
        }
        let step = i64::from(header >> 4);
        // A field's own number fits sixteen bits; a wrong one is only not recognised.
        let id = if step == 0 { self.integer()? } else { before.saturating_add(step) };
        Ok(Some((id, Kind(header & 15))))
    }

    pub fn skip(&mut self, kind: Kind, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(broken(format!("structures nested deeper than {MAX_DEPTH}")));
        }
        match kind {
            Kind::TRUE | Kind::FALSE => Ok(()),
            Kind::BYTE => self.skip_bytes(1),
            Kind(4..=6) => self.varint().map(drop),
            Kind::DOUBLE => self.skip_bytes(8),
            Kind::UUID => self.skip_bytes(16),
            Kind::BINARY => {
                let count = self.varint()?;
                self.skip_bytes(count)
            }
            Kind::LIST | Kind::SET => {
                let (kind, count) = self.list()?;
                (0..count).try_for_each(|_| self.skip_element(kind, depth + 1))
            }
            Kind::MAP => {
                let count = self.varint()?;
                self.count(count)?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                (0..count).try_for_each(|_| {
                    self.skip_element(Kind(kinds >> 4), depth + 1)?;
                    self.skip_element(Kind(kinds & 15), depth + 1)
                })
            }
            Kind::STRUCT => {
                let mut id = 0;
                while let Some((next, kind)) = self.field(id)? {
                    id = next;
                    self.skip(kind, depth + 1)?;
                }
                Ok(())
            }
            Kind(other) => Err(broken(format!("a value of the unknown kind {other}"))),
        }
    }

    /// In a list a truth value has a byte of its own.
    fn skip_element(&mut self, kind: Kind, depth: usize) -> io::Result<()> {
        match kind {
            Kind::TRUE | Kind::FALSE => self.skip_bytes(1),
            other => self.skip(other, depth),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_what_is_skipped() {
        // 1: binary "ab"; 2: list of 2 integers; 3: map {1: {1: 7}}; 4: true; 5: a list of truth values; 20: -3.
        let bytes = [
            0x18, 2, b'a', b'b', 0x19, 0x25, 2, 4, 0x1b, 1, 0x5c, 2, 0x15, 14, 0, 0x11, 0x19, 0x21, 1, 2, 0x05, 40, 5,
            0, 0xff,
        ];
        let mut seen = Vec::new();
        let mut reader = Reader::new(&bytes[..], 100);
        let read = reader.fields(|reader, id, kind| {
            let is_number = kind == Kind::INTEGER;
            seen.push((id, if is_number { reader.integer()? } else { 0 }));
            Ok(is_number)
        });
        read.expect("a structure");
        assert_eq!(seen, [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (20, -3)]);
        assert_eq!(reader.taken(), bytes.len() as u64 - 1, "what follows is left");
    }

    #[test]
    fn what_claims_more_than_there_is_ends_in_an_error() {
        let read = |bytes: &[u8], limit| Reader::new(bytes, limit).fields(|_, _, _| Ok(false)).expect_err("refused");
        assert_eq!(read(&[0x18, 0x80, 0x80, 0x80, 0x80, 0x10], 1 << 40).kind(), io::ErrorKind::UnexpectedEof);
        assert!(read(&[0x18, 50], 10).to_string().contains("more than 10 bytes"));
        assert!(read(&[0x19, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x0f], 100).to_string().contains("elements"));
        assert!(
            read(&[0x15, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 100)
                .to_string()
                .contains("64 bits")
        );
        assert!(read(&[0x1f], 100).to_string().contains("kind 15"));
        let nested = [0x1c; 40];
        assert!(read(&nested, 100).to_string().contains("nested deeper"));
    }
}
