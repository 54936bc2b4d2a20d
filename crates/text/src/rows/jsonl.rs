//! JSON lines: one object a line.

use std::io::Read;

use serde_json::{Map, Value};
use tailor_domain::DropReason;
use tailor_domain::dataset::DroppedRow;

use super::columns::{ColumnMap, Columns, Roles};
use super::lines::{Lines, Piece};
use super::{
    Fields, Format, Outcome, RowContent, conversation, dropped, excerpt, finish_row, invalid_utf8, preference,
};
use crate::error::{Error, Result};

/// How far to look for the first object, whose keys are the columns.
const MAX_LINES_BEFORE_FIRST: usize = 100;

pub(super) struct JsonRows<R> {
    pub columns: Columns,
    lines: Lines<R>,
}

impl<R: Read> JsonRows<R> {
    pub fn open(mut lines: Lines<R>, wanted: &ColumnMap) -> Result<Self> {
        let mut seen = Vec::new();
        let mut first = None;
        while let Some((line, piece)) = lines.next()? {
            if let Piece::Line(bytes) = &piece {
                first = object(line, bytes).ok();
            }
            let blank = matches!(&piece, Piece::Line(bytes) if is_blank(bytes));
            if !blank {
                seen.push((line, piece));
            }
            if first.is_some() || seen.len() >= MAX_LINES_BEFORE_FIRST {
                break;
            }
        }
        if seen.is_empty() {
            return Err(Error::Empty);
        }
        let Some(first) = first else {
            let line = seen.first().map_or(1, |(line, _)| *line);
            let problem = format!("none of the first {} lines is a JSON object; is this a JSONL file?", seen.len());
            return Err(Error::Header { line, problem });
        };
        let keys: Vec<String> = first.keys().cloned().collect();
        let columns = Columns::find(wanted, &keys, Format::Jsonl)?;
        lines.push_back(seen);
        Ok(Self { columns, lines })
    }

    /// Of lines whose columns are known.
    pub fn of(lines: Lines<R>, columns: Columns) -> Self {
        Self { columns, lines }
    }

    pub fn next_outcome(&mut self) -> Result<Option<Outcome>> {
        loop {
            let Some((line, piece)) = self.lines.next()? else { return Ok(None) };
            let outcome = match piece {
                Piece::TooLong { bytes } => {
                    let detail = format!("{bytes} bytes, the limit is {}", self.lines.limits().max_line_bytes);
                    Outcome::Dropped(dropped(line, None, DropReason::TooLong, detail))
                }
                Piece::Line(bytes) if is_blank(&bytes) => continue,
                Piece::Line(bytes) => match object(line, &bytes).and_then(|object| fields(line, &self.columns, object))
                {
                    Ok(fields) => finish_row(line, &self.columns, fields),
                    Err(dropped) => Outcome::Dropped(dropped),
                },
            };
            return Ok(Some(outcome));
        }
    }
}

/// What the columns have in an object.
fn fields(line: u64, columns: &Columns, mut object: Map<String, Value>) -> Result<Fields, DroppedRow> {
    let mut value = |name: &str| {
        let missing = || dropped(line, Some(name), DropReason::MissingField, "the object has no such key");
        object.remove(name).ok_or_else(missing)
    };
    let mut text = |name: &String| as_text(line, name, value(name)?);
    let content = match &columns.roles {
        Roles::InputTarget { input, target } => RowContent::InputTarget { input: text(input)?, target: text(target)? },
        Roles::Conversation { messages } => {
            RowContent::Conversation { messages: conversation::parse(line, messages, value(messages)?)? }
        }
        Roles::Preference { prompt, chosen, rejected } => {
            let (asked, better, worse) = (value(prompt)?, value(chosen)?, value(rejected)?);
            preference::parse(line, (prompt, asked), (chosen, better), (rejected, worse))?
        }
    };
    // Numbers are fine where only equality counts.
    let mut scalar = |name: &Option<String>| match object.remove(name.as_ref()?) {
        Some(Value::String(text)) => Some(text),
        Some(Value::Number(number)) => Some(number.to_string()),
        Some(Value::Bool(flag)) => Some(flag.to_string()),
        _ => None,
    };
    Ok(Fields { id: scalar(&columns.id), label: scalar(&columns.label), content })
}

/// Nothing at all is an empty text.
pub(super) fn as_text(line: u64, name: &str, value: Value) -> Result<String, DroppedRow> {
    match value {
        Value::String(text) => Ok(text),
        Value::Null => Ok(String::new()),
        other => {
            let detail = format!("{} is no text", excerpt(&other.to_string()));
            Err(dropped(line, Some(name), DropReason::Malformed, detail))
        }
    }
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_whitespace)
}

fn object(line: u64, bytes: &[u8]) -> Result<Map<String, Value>, DroppedRow> {
    let text = std::str::from_utf8(bytes).map_err(|error| invalid_utf8(line, None, bytes, error))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            let detail = format!("{} is no JSON object", excerpt(&other.to_string()));
            Err(dropped(line, None, DropReason::Malformed, detail))
        }
        Err(error) => Err(dropped(line, None, DropReason::Malformed, format!("not JSON: {error}"))),
    }
}
