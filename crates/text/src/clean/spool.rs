//! Rows on disk while a file is cleaned: each as one line of JSON, and what is asked of it again beside it.

use std::fs::File;
use std::io::{self, BufWriter, IntoInnerError, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytemuck::{Pod, Zeroable};
use tempfile::{NamedTempFile, TempPath};

use crate::Column;
use crate::column::Appending;
use crate::error::{Error, Result};
use crate::rows::Row;

/// What is known of a row without reading it.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Known {
    /// Where its line begins.
    pub offset: u64,
    /// Of the uploaded file.
    pub line: u64,
    /// Its label's number; 0 for none.
    pub label: u32,
    /// Place of its length among the histogram's buckets.
    pub bucket: u32,
}

/// Rows on their way in.
pub(super) struct Incoming {
    lines: BufWriter<File>,
    written: u64,
    known: Appending<Known>,
    line: Vec<u8>,
}

impl Incoming {
    pub fn new(folder: &Path) -> Result<Self> {
        let lines = BufWriter::new(tempfile::tempfile_in(folder)?);
        Ok(Self { lines, written: 0, known: Appending::new(folder)?, line: Vec::new() })
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn push(&mut self, row: &Row, label: u32, bucket: u32) -> Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, row).map_err(io::Error::from)?;
        self.line.push(b'\n');
        self.lines.write_all(&self.line)?;
        self.known.push(&Known { offset: self.written, line: row.line, label, bucket })?;
        self.written += self.line.len() as u64;
        Ok(())
    }

    pub fn finish(self) -> Result<Spooled> {
        let lines = self.lines.into_inner().map_err(IntoInnerError::into_error)?;
        Ok(Spooled { lines, end: self.written, known: self.known.finish()? })
    }
}

/// All rows of a file.
pub(super) struct Spooled {
    lines: File,
    end: u64,
    pub known: Column<Known>,
}

impl Spooled {
    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn read(&self, row: usize) -> Result<Row> {
        let begin = self.known.look(row).offset;
        let mut line = vec![0; (self.end_of(row) - begin) as usize];
        self.lines.read_exact_at(&mut line, begin)?;
        serde_json::from_slice(&line).map_err(|error| Error::Io(error.into()))
    }

    /// Where a row's line ends.
    fn end_of(&self, row: usize) -> u64 {
        let next = row + 1;
        if next < self.len() { self.known.look(next).offset } else { self.end }
    }

    /// Copies every row, in order, to the file that `chosen` says, or to none.
    pub fn copy(&self, mut chosen: impl FnMut(usize) -> Option<Side>, folder: &Path) -> Result<Sides> {
        let mut sides = [Output::new(folder)?, Output::new(folder)?];
        let mut at = 0;
        let mut piece = vec![0; 1 << 16];
        for row in 0..self.len() {
            let end = self.end_of(row);
            if let Some(side) = chosen(row) {
                let out = &mut sides[usize::from(side == Side::Validation)];
                out.rows += 1;
                while at < end {
                    let some = (end - at).min(piece.len() as u64) as usize;
                    self.lines.read_exact_at(&mut piece[..some], at)?;
                    out.file.write_all(&piece[..some])?;
                    at += some as u64;
                }
            }
            at = end;
        }
        self.known.release();
        let [train, validation] = sides;
        Ok(Sides { train: train.finish()?, validation: validation.finish()? })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Train,
    Validation,
}

pub(super) struct Sides {
    pub train: RowFile,
    pub validation: RowFile,
}

/// Cleaned rows in a file that is deleted when this is dropped: one line of JSON each.
#[derive(Debug)]
pub struct RowFile {
    pub path: TempPath,
    pub rows: u64,
}

struct Output {
    file: BufWriter<File>,
    path: TempPath,
    rows: u64,
}

impl Output {
    fn new(folder: &Path) -> Result<Self> {
        let (file, path) = NamedTempFile::new_in(folder)?.into_parts();
        Ok(Self { file: BufWriter::with_capacity(1 << 16, file), path, rows: 0 })
    }

    fn finish(mut self) -> Result<RowFile> {
        self.file.flush()?;
        Ok(RowFile { path: self.path, rows: self.rows })
    }
}
