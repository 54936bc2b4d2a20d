//! From an uploaded file to cleaned rows on disk: read, check, balance, split. Blocking; runs off the async threads.

use std::fs::File;
use std::path::Path;

use tailor_domain::{DatasetKind, Report};
use tailor_text::{Cleaner, PromptTemplate, RowLimits, RowReader};
use tempfile::TempPath;

use crate::upload::Header;
use crate::{Error, Result, rows};

/// A file's rows, cleaned and split, in temporary files of JSON lines.
#[derive(Debug)]
pub struct Ingested {
    pub kind: DatasetKind,
    pub train: TempPath,
    pub validation: TempPath,
    /// With `{input}`, whatever the caller called the column.
    pub prompt_template: String,
    pub report: Report,
}

/// # Errors
/// [`Error::File`]: the file cannot become a dataset. [`Error::Spool`]: the disk is full.
pub fn ingest(source: &Path, header: &Header, limits: RowLimits, folder: &Path) -> Result<Ingested> {
    let unfit = |source: tailor_text::Error| Error::File { file: header.file_name.clone(), source };
    let file = File::open(source).map_err(|error| unfit(error.into()))?;
    let mut cleaner = Cleaner::new(header.clean.clone()).map_err(unfit)?;
    let reader = RowReader::open(file, header.format, &header.columns, limits).map_err(unfit)?;
    let roles = &reader.columns().roles;
    let kind = roles.kind();
    let template = PromptTemplate::parse(&header.prompt_template, roles.input().map(String::as_str)).map_err(unfit)?;
    if kind == DatasetKind::Conversation && template != PromptTemplate::default() {
        let problem = "a conversation is rendered by the base's chat template; leave the prompt template out";
        return Err(unfit(tailor_text::Error::PromptTemplate { problem: problem.into() }));
    }
    for outcome in reader {
        outcome.and_then(|outcome| cleaner.push(outcome)).map_err(unfit)?;
    }
    let cleaned = cleaner.finish().map_err(unfit)?;
    Ok(Ingested {
        kind,
        train: rows::write(&cleaned.train, folder)?,
        validation: rows::write(&cleaned.validation, folder)?,
        prompt_template: template.to_string(),
        report: cleaned.report,
    })
}
