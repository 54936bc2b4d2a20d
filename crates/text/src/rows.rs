//! Rows from a CSV, JSONL or Parquet file, in bounded memory: (input, expected output), conversations (not in CSV), or preference
//! pairs. All rows of a file are of one kind, which its columns tell.
//!
//! A whole file is refused when it cannot be what it claims (binary, UTF-16, no such column, an endless line); a single
//! row is dropped with its line, field and reason. Fields are trimmed. CSV is RFC 4180 with `,`, `;` or tab (whichever the
//! header uses); a quote that never closes costs one line, not the rest of the file.

mod columns;
mod content;
mod conversation;
mod csv;
mod jsonl;
mod lines;
mod parquet;
mod preference;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tailor_domain::DropReason;
use tailor_domain::dataset::DroppedRow;

pub use columns::{ColumnMap, Columns, Roles};
pub use content::RowContent;
pub use parquet::serve_if_asked;

use crate::error::{Error, Result};

/// One cleaned row. Its JSON is how rows are kept between steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// 1-based line of the uploaded file where the row starts.
    pub line: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(flatten)]
    pub content: RowContent,
}

/// What became of one record of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Row(Row),
    Dropped(DroppedRow),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Csv,
    Jsonl,
    Parquet,
}

impl Format {
    /// By name (`csv`, `jsonl`, `parquet`), or if that is empty by the file's ending.
    ///
    /// # Errors
    /// Neither says which format it is.
    pub fn detect(name: &str, file_name: &str) -> Result<Self> {
        let ending = file_name.rsplit_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase();
        let asked = if name.is_empty() { ending } else { name.to_ascii_lowercase() };
        match asked.as_str() {
            "csv" | "tsv" => Ok(Self::Csv),
            "jsonl" | "ndjson" => Ok(Self::Jsonl),
            "parquet" => Ok(Self::Parquet),
            other => Err(Error::Option {
                field: "format",
                problem: format!("{other:?} of file {file_name:?} is not supported; use csv, jsonl or parquet"),
            }),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct RowLimits {
    /// A longer row is dropped without being kept in memory.
    pub max_line_bytes: usize,
    /// A longer line ends the reading: no row file has it.
    pub max_skipped_bytes: u64,
    /// What the rows of a Parquet file may have as JSON.
    pub max_unpacked_bytes: u64,
}

impl Default for RowLimits {
    fn default() -> Self {
        Self { max_line_bytes: 1 << 20, max_skipped_bytes: 64 << 20, max_unpacked_bytes: 16 << 30 }
    }
}

/// Reads rows one by one. Ends after the first `Err`: that is about the whole file.
pub struct RowReader<R> {
    source: Source<R>,
    done: bool,
}

enum Source<R> {
    Csv(csv::CsvRows<R>),
    Jsonl(jsonl::JsonRows<R>),
    Parquet(Box<parquet::ParquetRows>),
}

impl RowReader<File> {
    /// Finds the columns of a file of any format. `program` reads Parquet files apart, by [`serve_if_asked`].
    ///
    /// # Errors
    /// As [`Self::open`]; it is no Parquet file, or one that takes more memory or time than rows do.
    pub fn open_file(
        file: File,
        format: Format,
        columns: &ColumnMap,
        limits: RowLimits,
        program: &Path,
    ) -> Result<Self> {
        match format {
            Format::Csv | Format::Jsonl => Self::open(file, format, columns, limits),
            Format::Parquet => {
                let rows = parquet::ParquetRows::open(&file, columns, limits, program)?;
                Ok(Self { source: Source::Parquet(Box::new(rows)), done: false })
            }
        }
    }
}

impl<R: Read> RowReader<R> {
    /// Reads the beginning of a file of text and finds the columns.
    ///
    /// # Errors
    /// The file is empty, not text, or lacks a column; a Parquet file, which is read from its end.
    pub fn open(reader: R, format: Format, columns: &ColumnMap, limits: RowLimits) -> Result<Self> {
        let lines = |reader| lines::Lines::open(reader, limits);
        let source = match format {
            Format::Csv => Source::Csv(csv::CsvRows::open(lines(reader)?, columns)?),
            Format::Jsonl => Source::Jsonl(jsonl::JsonRows::open(lines(reader)?, columns)?),
            Format::Parquet => {
                let problem = "parquet is read from a file, not from a stream".into();
                return Err(Error::Option { field: "format", problem });
            }
        };
        Ok(Self { source, done: false })
    }

    pub fn columns(&self) -> &Columns {
        match &self.source {
            Source::Csv(rows) => &rows.columns,
            Source::Jsonl(rows) => &rows.columns,
            Source::Parquet(rows) => &rows.rows.columns,
        }
    }
}

impl<R: Read> Iterator for RowReader<R> {
    type Item = Result<Outcome>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = match &mut self.source {
            Source::Csv(rows) => rows.next_outcome(),
            Source::Jsonl(rows) => rows.next_outcome(),
            Source::Parquet(rows) => rows.next_outcome(),
        }
        .transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

/// A record's fields as they stand in the file.
struct Fields {
    id: Option<String>,
    label: Option<String>,
    content: RowContent,
}

fn dropped(line: u64, field: Option<&str>, reason: DropReason, detail: impl Into<String>) -> DroppedRow {
    DroppedRow { line, field: field.map(str::to_owned), reason, detail: detail.into() }
}

/// The rules that hold whatever the format.
fn finish_row(line: u64, columns: &Columns, fields: Fields) -> Outcome {
    match content::checked(line, columns, fields.content) {
        Ok(content) => {
            let present = |text: Option<String>| text.map(trimmed).filter(|text| !text.is_empty());
            Outcome::Row(Row { line, id: present(fields.id), label: present(fields.label), content })
        }
        Err(dropped) => Outcome::Dropped(dropped),
    }
}

fn trimmed(text: String) -> String {
    if text.trim().len() == text.len() { text } else { text.trim().to_owned() }
}

/// Text for a message: one line, not too long.
fn excerpt(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut short: String = text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}

fn invalid_utf8(line: u64, field: Option<&str>, bytes: &[u8], error: std::str::Utf8Error) -> DroppedRow {
    let at = error.valid_up_to();
    let byte = bytes.get(at).copied().unwrap_or_default();
    let detail = format!("byte 0x{byte:02X} at position {} is not UTF-8; save the file as UTF-8", at + 1);
    dropped(line, field, DropReason::InvalidUtf8, detail)
}

#[cfg(test)]
mod tests;
