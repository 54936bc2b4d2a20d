//! Parquet files: rows of columns, which may be lists and structures, as the Hub's datasets are. A row has what the same row of a file
//! of JSON lines has, and its number takes the place of the line.

mod bounds;
mod thrift;

use std::any::Any;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value};
use tailor_domain::DropReason;

use super::columns::{ColumnMap, Columns};
use super::{Format, Outcome, RowLimits, dropped, finish_row, jsonl};
use crate::error::{Error, Result};

/// Rows whose values are read at once.
const BATCH: usize = 256;
/// Bytes of what is no text, for the message that says so.
const EXCERPT: usize = 32;

pub(super) struct ParquetRows {
    pub columns: Columns,
    rows: RowIter<'static>,
    number: u64,
    limits: RowLimits,
}

impl ParquetRows {
    pub fn open(mut file: File, wanted: &ColumnMap, limits: RowLimits) -> Result<Self> {
        bounds::check_footer(&mut file)?;
        let size = file.metadata()?.len();
        let own = file.try_clone()?;
        guarded(move || {
            let reader = SerializedFileReader::new(own).map_err(library)?;
            let metadata = reader.metadata();
            let root = metadata.file_metadata().schema();
            let names: Vec<String> = root.get_fields().iter().map(|field| field.name().to_owned()).collect();
            if metadata.row_groups().iter().all(|group| group.num_rows() <= 0) {
                return Err(Error::Empty);
            }
            let columns = Columns::find(wanted, &names, Format::Parquet)?;
            let is_read = |name: &str| {
                columns.roles.all().into_iter().chain(&columns.id).chain(&columns.label).any(|column| column == name)
            };
            for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
                if column.column_path().parts().first().is_some_and(|name| is_read(name)) {
                    bounds::check_column(&mut file, size, column)?;
                }
            }
            let fields = root.get_fields().iter().filter(|field| is_read(field.name())).map(Arc::clone).collect();
            let wanted = Type::group_type_builder(root.name()).with_fields(fields).build().map_err(library)?;
            let rows = RowIter::from_file_into(Box::new(reader)).project(Some(wanted)).map_err(library)?;
            Ok(Self { columns, rows: rows.with_batch_size(BATCH), number: 0, limits })
        })
    }

    pub fn next_outcome(&mut self) -> Result<Option<Outcome>> {
        let Some(row) = guarded(|| self.rows.next().transpose().map_err(library))? else { return Ok(None) };
        self.number += 1;
        let mut bytes = 0;
        let object = object(row, &mut bytes);
        if bytes > self.limits.max_line_bytes {
            let detail = format!("{bytes} bytes, the limit is {}", self.limits.max_line_bytes);
            return Ok(Some(Outcome::Dropped(dropped(self.number, None, DropReason::TooLong, detail))));
        }
        Ok(Some(match jsonl::fields(self.number, &self.columns, object) {
            Ok(fields) => finish_row(self.number, &self.columns, fields),
            Err(dropped) => Outcome::Dropped(dropped),
        }))
    }
}

fn damaged(problem: impl Into<String>) -> Error {
    Error::parquet(problem.into())
}

fn library(error: parquet::errors::ParquetError) -> Error {
    damaged(error.to_string())
}

/// The library is written for files that are as they should be, and panics at some that are not.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(damaged(said(&*panic))))
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("something in it cannot be read").to_owned()
}

/// A structure as the object that JSON would have. In a file of columns all rows have all fields, and those that a row has not are null:
/// within a column they are left out, as whoever writes JSON does.
fn object(row: Row, bytes: &mut usize) -> Map<String, Value> {
    row.into_columns().into_iter().map(|(name, field)| (name, value(field, bytes))).collect()
}

fn value(field: Field, bytes: &mut usize) -> Value {
    let text = |text: String, bytes: &mut usize| {
        *bytes += text.len();
        Value::String(text)
    };
    *bytes += 8;
    match field {
        Field::Null => Value::Null,
        Field::Bool(flag) => flag.into(),
        Field::Byte(number) => number.into(),
        Field::Short(number) => number.into(),
        Field::Int(number) => number.into(),
        Field::Long(number) => number.into(),
        Field::UByte(number) => number.into(),
        Field::UShort(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::ULong(number) => number.into(),
        Field::Float16(number) => number.to_f32().into(),
        Field::Float(number) => number.into(),
        Field::Double(number) => number.into(),
        Field::Str(own) => text(own, bytes),
        // Texts that nobody marked as such; what is none is no text to whoever asks for one.
        Field::Bytes(own) => match std::str::from_utf8(own.data()) {
            Ok(own) => text(own.to_owned(), bytes),
            Err(_) => own.data().iter().take(EXCERPT).map(|byte| Value::from(*byte)).collect(),
        },
        Field::Group(row) => {
            let mut fields = object(row, bytes);
            fields.retain(|_, value| !value.is_null());
            Value::Object(fields)
        }
        Field::ListInternal(list) => list.elements().iter().map(|element| value(element.clone(), bytes)).collect(),
        Field::MapInternal(map) => {
            let pairs = map.entries().iter().map(|(key, own)| (key.to_string(), value(own.clone(), bytes)));
            Value::Object(pairs.collect())
        }
        other @ (Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_)) => text(other.to_string(), bytes),
    }
}

#[cfg(test)]
mod tests;
