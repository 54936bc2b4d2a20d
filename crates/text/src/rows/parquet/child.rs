//! The process that reads a Parquet file: its standard input. What it finds it writes to standard output, what is wrong to
//! standard error.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::sync::Arc;

use nix::sys::resource::{Resource, setrlimit};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

/// The first argument of a program that is to be this process.
pub(super) const WORD: &str = "__read-parquet";
/// Then: the columns' names, as a list of JSON.
pub(super) const NAMES: &str = "names";
/// Or: how many bytes there may be, and the places of the columns whose values are wanted; gives an object a line.
pub(super) const ROWS: &str = "rows";
/// The status of a file that cannot be read.
pub(super) const REFUSED: u8 = 65;

/// Rows whose values are read at once.
const BATCH: usize = 64;
/// Bytes of what is no text, for the message that says so.
const EXCERPT: usize = 32;
const MAX_MEMORY_BYTES: u64 = 2 << 30;
const MAX_SECONDS: u64 = 3600;

/// For the beginning of a program's `main`: where it was started to read a Parquet file, does that and says how it went.
pub fn serve_if_asked() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_none_or(|word| word != WORD) {
        return None;
    }
    let words: Option<Vec<String>> = words.map(|word| word.into_string().ok()).collect();
    let outcome = bound().and_then(|()| serve(&words.unwrap_or_default()));
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(REFUSED)
        }
    })
}

/// What this process may take.
fn bound() -> Result<(), String> {
    for (resource, limit) in
        [(Resource::RLIMIT_DATA, MAX_MEMORY_BYTES), (Resource::RLIMIT_CPU, MAX_SECONDS), (Resource::RLIMIT_CORE, 0)]
    {
        setrlimit(resource, limit, limit)
            .map_err(|error| format!("the process that reads it has no bounds: {error}"))?;
    }
    Ok(())
}

fn serve(words: &[String]) -> Result<(), String> {
    let input = io::stdin().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    let output = io::stdout().lock();
    match words {
        [word] if word == NAMES => names(input.into(), output),
        [word, limit, wanted @ ..] if word == ROWS => {
            let number = |word: &String| word.parse::<u64>().map_err(|_| format!("{word:?} is no number"));
            let wanted = wanted.iter().map(number).collect::<Result<Vec<_>, _>>()?;
            rows(input.into(), number(limit)?, &wanted, output)
        }
        _ => Err("this program reads Parquet files for others".into()),
    }
}

fn open(file: File) -> Result<SerializedFileReader<File>, String> {
    match file.metadata() {
        Ok(metadata) if metadata.len() == 0 => Err("it is empty".into()),
        _ => SerializedFileReader::new(file).map_err(library),
    }
}

fn library(error: ParquetError) -> String {
    let text = error.to_string();
    text.strip_prefix("Parquet error: ").unwrap_or(&text).to_owned()
}

pub(super) fn names(file: File, mut output: impl Write) -> Result<(), String> {
    let reader = open(file)?;
    let fields = reader.metadata().file_metadata().schema().get_fields();
    let names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
    let names = serde_json::to_string(&names).map_err(|error| error.to_string())?;
    output.write_all(names.as_bytes()).map_err(|error| error.to_string())
}

pub(super) fn rows(file: File, limit: u64, wanted: &[u64], output: impl Write) -> Result<(), String> {
    let reader = open(file)?;
    let root = reader.metadata().file_metadata().schema();
    let placed = (0..).zip(root.get_fields()).filter(|(place, _)| wanted.contains(place));
    let fields = placed.map(|(_, field)| Arc::clone(field)).collect();
    let wanted = Type::group_type_builder(root.name()).with_fields(fields).build().map_err(library)?;
    let rows = RowIter::from_file_into(Box::new(reader)).project(Some(wanted)).map_err(library)?;
    let mut output = Counted { output: BufWriter::new(output), left: limit, limit };
    for row in rows.with_batch_size(BATCH) {
        let mut line = serde_json::to_vec(&object(row.map_err(library)?)).map_err(|error| error.to_string())?;
        line.push(b'\n');
        output.write(&line)?;
    }
    output.output.flush().map_err(|error| error.to_string())
}

/// A file may say the same page or text again and again.
struct Counted<W: Write> {
    output: BufWriter<W>,
    left: u64,
    limit: u64,
}

impl<W: Write> Counted<W> {
    fn write(&mut self, line: &[u8]) -> Result<(), String> {
        let left = self.left.checked_sub(line.len() as u64);
        self.left = left.ok_or_else(|| {
            format!("its rows have more than {} bytes as JSON (dataset.max_upload_bytes); part it", self.limit)
        })?;
        self.output.write_all(line).map_err(|error| error.to_string())
    }
}

/// A structure as the object that JSON would have.
fn object(row: Row) -> Map<String, Value> {
    row.into_columns().into_iter().map(|(name, field)| (name, value(field))).collect()
}

fn value(field: Field) -> Value {
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
        Field::Str(text) => text.into(),
        // Texts that nobody marked as such; what is none is no text to whoever asks for one.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => bytes.data().iter().take(EXCERPT).map(|byte| Value::from(*byte)).collect(),
        },
        // In a file of columns all rows have all fields, and those that a row has not are null: within a column they are left
        // out, as whoever writes JSON does.
        Field::Group(row) => {
            let mut fields = object(row);
            fields.retain(|_, value| !value.is_null());
            Value::Object(fields)
        }
        Field::ListInternal(list) => list.elements().iter().map(|element| value(element.clone())).collect(),
        Field::MapInternal(map) => {
            let key = |key: &Field| match key {
                Field::Str(text) => text.clone(),
                other => other.to_string(),
            };
            map.entries().iter().map(|(name, own)| (key(name), value(own.clone()))).collect::<Map<_, _>>().into()
        }
        other @ (Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_)) => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests;
