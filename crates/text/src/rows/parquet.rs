//! Parquet files, as the Hub keeps datasets, read by a process of their own.
//!
//! Such a file says of its parts how much room they take once they are unpacked, in dozens of places, and a few hundred bytes may
//! say anything. The library that reads it believes them; looking at all of them before would be a second reader that had to
//! agree with the first. So it reads where nothing but this one file can come to harm: a process with limits on memory and time
//! ([`child`]) that gets the open file and gives JSON lines, which are then read as any others. A row's number is its line.

mod child;

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

pub use child::serve_if_asked;

use super::columns::{ColumnMap, Columns};
use super::jsonl::JsonRows;
use super::lines::Lines;
use super::{Format, Outcome, RowLimits};
use crate::error::{Error, Result};

/// Of the columns' names together.
const MAX_NAMES_BYTES: u64 = 1 << 20;
/// Of what is said about a file that cannot be read.
const MAX_WORDS_BYTES: u64 = 4 << 10;

pub(super) struct ParquetRows {
    pub rows: JsonRows<ChildStdout>,
    process: Process,
}

impl ParquetRows {
    pub fn open(file: &File, wanted: &ColumnMap, limits: RowLimits, program: &Path) -> Result<Self> {
        let names = names(file, program)?;
        let columns = Columns::find(wanted, &names, Format::Parquet)?;
        let limit = limits.max_unpacked_bytes.to_string();
        // By their places: a name may be anything, and too long for an argument.
        let used: Vec<&String> = columns.roles.all().into_iter().chain(&columns.id).chain(&columns.label).collect();
        let places = (0..names.len()).filter(|place| used.contains(&&names[*place])).map(|place| place.to_string());
        let words: Vec<String> = [child::ROWS.to_owned(), limit].into_iter().chain(places).collect();
        let (mut process, output) = Process::start(program, file, &words)?;
        let lines = match Lines::open(output, limits) {
            Ok(lines) => lines,
            // What it says is nearer to the cause than that nothing came.
            Err(error) => return Err(process.finish().err().unwrap_or(error)),
        };
        Ok(Self { rows: JsonRows::of(lines, columns), process })
    }

    pub fn next_outcome(&mut self) -> Result<Option<Outcome>> {
        let next = self.rows.next_outcome()?;
        if next.is_none() {
            self.process.finish()?;
        }
        Ok(next)
    }
}

fn names(file: &File, program: &Path) -> Result<Vec<String>> {
    let (mut process, output) = Process::start(program, file, &[child::NAMES.to_owned()])?;
    let mut names = Vec::new();
    output.take(MAX_NAMES_BYTES).read_to_end(&mut names)?;
    if names.len() as u64 == MAX_NAMES_BYTES {
        return Err(Error::parquet(format!("the names of its columns have {MAX_NAMES_BYTES} bytes or more")));
    }
    process.finish()?;
    serde_json::from_slice(&names).map_err(|error| Error::parquet(format!("the names of its columns: {error}")))
}

/// Dropping it ends it.
struct Process {
    child: Child,
    said: File,
}

impl Process {
    fn start(program: &Path, file: &File, words: &[String]) -> Result<(Self, ChildStdout)> {
        let said = tempfile::tempfile()?;
        let mut command = Command::new(program);
        command.arg(child::WORD).args(words).stdin(file.try_clone()?).stdout(Stdio::piped()).stderr(said.try_clone()?);
        // Nothing of ours is its business, but for what a program needs to start.
        command.env_clear();
        if let Some(path) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", path);
        }
        let mut child = command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("{} cannot be started to read it: {error}", program.display()))
        })?;
        let output = child.stdout.take().ok_or_else(|| Error::parquet("the process that reads it has no output"))?;
        Ok((Self { child, said }, output))
    }

    /// How it ended; an error where it did not read the whole file.
    fn finish(&mut self) -> Result<()> {
        let status = self.child.wait()?;
        if status.success() {
            return Ok(());
        }
        let mut said = Vec::new();
        self.said.rewind()?;
        (&self.said).take(MAX_WORDS_BYTES).read_to_end(&mut said)?;
        if status.code() == Some(child::REFUSED.into()) {
            return Err(Error::parquet(String::from_utf8_lossy(&said).trim()));
        }
        tracing::warn!(%status, said = %String::from_utf8_lossy(&said), "a Parquet file ended the process that read it");
        let problem = "it is damaged, or takes more memory or time than a file of rows does";
        Err(Error::parquet(format!("{problem} (the process that read it: {status})")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
