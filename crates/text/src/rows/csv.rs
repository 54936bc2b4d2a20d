//! CSV (RFC 4180), strict about quotes so that a stray one is found where it stands.

use std::io::Read;

use tailor_domain::DropReason;

use super::columns::{ColumnMap, Columns, Roles};
use super::lines::{Lines, Piece};
use super::{Fields, Format, Outcome, RowContent, dropped, excerpt, finish_row, invalid_utf8};
use crate::error::{Error, Result};

/// A record over more lines than this has a quote that was never meant to stay open.
const MAX_RECORD_LINES: usize = 10_000;
/// Bytes that may be read twice to recover from stray quotes; then the lines they swallowed are lost.
const RESCAN_BYTES: u64 = 64 << 20;

pub(super) struct CsvRows<R> {
    pub columns: Columns,
    lines: Lines<R>,
    delimiter: u8,
    width: usize,
    id: Option<usize>,
    label: Option<usize>,
    /// Where each column stands, and what it is called.
    roles: Roles<(usize, String)>,
    rescan_left: u64,
}

impl<R: Read> CsvRows<R> {
    pub fn open(mut lines: Lines<R>, wanted: &ColumnMap) -> Result<Self> {
        let (line, header) = loop {
            match lines.next()? {
                None => return Err(Error::Empty),
                Some((_, Piece::Line(bytes))) if bytes.iter().all(u8::is_ascii_whitespace) => {}
                Some((line, Piece::Line(bytes))) => break (line, bytes),
                Some((line, Piece::TooLong { bytes })) => {
                    let limit = lines.limits().max_line_bytes;
                    let problem = format!("the header has {bytes} bytes, the limit is {limit}; is this a CSV file?");
                    return Err(Error::Header { line, problem });
                }
            }
        };
        let bad = |problem: String| Error::Header { line, problem };
        let delimiter = guess_delimiter(&header);
        let mut parser = RecordParser::new(delimiter);
        let fields = match parser.feed(&header) {
            Status::Complete => parser.take(),
            Status::Open => return Err(bad("a quote in the header is never closed".into())),
            Status::Bad(problem) => return Err(bad(format!("the header is no CSV: {problem}"))),
        };
        let names: Vec<String> = fields
            .into_iter()
            .map(|bytes| String::from_utf8(bytes).map(|name| name.trim().to_owned()))
            .collect::<Result<_, _>>()
            .map_err(|_| bad("the header is not UTF-8; save the file as UTF-8".into()))?;
        let columns = Columns::find(wanted, &names, Format::Csv)?;
        let index = |name: &str| names.iter().position(|other| other == name);
        let found = |name: &String| match index(name) {
            Some(index) => Ok((index, name.clone())),
            None => Err(bad("a column was found and then was not".into())),
        };
        let roles = columns.roles.try_map(found)?;
        Ok(Self {
            id: columns.id.as_deref().and_then(index),
            label: columns.label.as_deref().and_then(index),
            roles,
            columns,
            lines,
            delimiter,
            width: names.len(),
            rescan_left: RESCAN_BYTES,
        })
    }

    pub fn next_outcome(&mut self) -> Result<Option<Outcome>> {
        loop {
            let Some((line, piece)) = self.lines.next()? else { return Ok(None) };
            match piece {
                Piece::TooLong { bytes } => {
                    let detail = format!("{bytes} bytes, the limit is {}", self.lines.limits().max_line_bytes);
                    return Ok(Some(Outcome::Dropped(dropped(line, None, DropReason::TooLong, detail))));
                }
                Piece::Line(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => {}
                Piece::Line(bytes) => return self.record(line, bytes).map(Some),
            }
        }
    }

    /// The record that starts with this line; quoted fields may span further ones.
    fn record(&mut self, line: u64, first: Vec<u8>) -> Result<Outcome> {
        let malformed = |detail: String| Outcome::Dropped(dropped(line, None, DropReason::Malformed, detail));
        let mut parser = RecordParser::new(self.delimiter);
        let mut status = parser.feed(&first);
        let mut size = first.len();
        let mut swallowed: Vec<(u64, Piece)> = Vec::new();
        while matches!(status, Status::Open) {
            let next = self.lines.next()?;
            let limit = self.lines.limits().max_line_bytes;
            match next {
                Some((number, Piece::Line(bytes)))
                    if size + bytes.len() <= limit && swallowed.len() < MAX_RECORD_LINES =>
                {
                    size += bytes.len() + 1;
                    status = parser.feed(&bytes);
                    swallowed.push((number, Piece::Line(bytes)));
                }
                next => {
                    swallowed.extend(next);
                    self.recover(swallowed);
                    let at = parser.quote_field + 1;
                    return Ok(malformed(format!("the quote that opens field {at} is never closed")));
                }
            }
        }
        if let Status::Bad(problem) = status {
            self.recover(swallowed);
            return Ok(malformed(problem));
        }
        let fields = parser.take();
        if fields.len() != self.width {
            let detail = format!("{} fields where the header has {}", fields.len(), self.width);
            self.recover(swallowed);
            return Ok(Outcome::Dropped(dropped(line, None, DropReason::FieldCount, detail)));
        }
        Ok(self.row(line, fields))
    }

    /// Lines that a stray quote swallowed are rows of their own: read them again.
    fn recover(&mut self, swallowed: Vec<(u64, Piece)>) {
        let size: u64 = swallowed
            .iter()
            .map(|(_, piece)| if let Piece::Line(line) = piece { line.len() as u64 + 1 } else { 1 })
            .sum();
        if size <= self.rescan_left {
            self.rescan_left -= size;
            self.lines.push_back(swallowed);
        }
    }

    fn row(&self, line: u64, mut fields: Vec<Vec<u8>>) -> Outcome {
        let mut take = |index: usize, name: &str| {
            let bytes = fields.get_mut(index).map(std::mem::take).unwrap_or_default();
            String::from_utf8(bytes).map_err(|error| {
                let reason = error.utf8_error();
                invalid_utf8(line, Some(name), error.as_bytes(), reason)
            })
        };
        let mut read = || {
            let mut text = |column: &(usize, String)| take(column.0, &column.1);
            let content = match &self.roles {
                Roles::InputTarget { input, target } => {
                    RowContent::InputTarget { input: text(input)?, target: text(target)? }
                }
                Roles::Preference { prompt, chosen, rejected } => {
                    RowContent::Preference { prompt: text(prompt)?, chosen: text(chosen)?, rejected: text(rejected)? }
                }
                Roles::Conversation { messages } => {
                    let detail = "a field of csv holds no messages";
                    return Err(dropped(line, Some(&messages.1), DropReason::Malformed, detail));
                }
            };
            Ok(Fields {
                content,
                id: self.id.map(|index| take(index, "id")).transpose()?,
                label: self.label.map(|index| take(index, "label")).transpose()?,
            })
        };
        match read() {
            Ok(fields) => finish_row(line, &self.columns, fields),
            Err(dropped) => Outcome::Dropped(dropped),
        }
    }
}

/// The candidate that is most often in the header outside quotes.
fn guess_delimiter(header: &[u8]) -> u8 {
    let count = |delimiter: u8| {
        let mut quoted = false;
        header
            .iter()
            .filter(|byte| {
                quoted ^= **byte == b'"';
                !quoted && **byte == delimiter
            })
            .count()
    };
    // Of equal counts the last one wins.
    [b'\t', b';', b','].into_iter().max_by_key(|delimiter| count(*delimiter)).unwrap_or(b',')
}

enum Status {
    Complete,
    /// A quoted field goes on in the next line.
    Open,
    Bad(String),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    /// After a quote inside a quoted field: the field's end, or the first half of `""`.
    Quote,
}

/// Takes one record line by line.
struct RecordParser {
    delimiter: u8,
    state: State,
    fields: Vec<Vec<u8>>,
    field: Vec<u8>,
    /// The field whose quote was opened last, for the message.
    quote_field: usize,
}

impl RecordParser {
    fn new(delimiter: u8) -> Self {
        Self { delimiter, state: State::FieldStart, fields: Vec::new(), field: Vec::new(), quote_field: 0 }
    }

    fn feed(&mut self, line: &[u8]) -> Status {
        for (at, byte) in line.iter().copied().enumerate() {
            match (self.state, byte) {
                (State::FieldStart, b'"') => {
                    self.quote_field = self.fields.len();
                    self.state = State::Quoted;
                }
                (State::Quoted, b'"') => self.state = State::Quote,
                (State::Quote, b'"') => {
                    self.field.push(b'"');
                    self.state = State::Quoted;
                }
                (State::FieldStart | State::Plain | State::Quote, byte) if byte == self.delimiter => {
                    self.fields.push(std::mem::take(&mut self.field));
                    self.state = State::FieldStart;
                }
                // Blanks between the closing quote and the delimiter are common and mean nothing.
                (State::Quote, b' ') => {}
                (State::Quote, _) => {
                    let rest = excerpt(&String::from_utf8_lossy(&line[at..]));
                    let field = self.fields.len() + 1;
                    return Status::Bad(format!("field {field} goes on after its closing quote: {rest:?}"));
                }
                (State::FieldStart | State::Plain, byte) => {
                    self.field.push(byte);
                    self.state = State::Plain;
                }
                (State::Quoted, byte) => self.field.push(byte),
            }
        }
        if self.state == State::Quoted {
            self.field.push(b'\n');
            return Status::Open;
        }
        Status::Complete
    }

    fn take(&mut self) -> Vec<Vec<u8>> {
        let mut fields = std::mem::take(&mut self.fields);
        fields.push(std::mem::take(&mut self.field));
        self.state = State::FieldStart;
        fields
    }
}
