//! From an uploaded file to cleaned rows on disk: read, check, balance, split. Blocking; runs off the async threads.

use std::fs::File;
use std::path::{Path, PathBuf};

use tailor_domain::{DatasetKind, Report};
use tailor_serverkit::spool;
use tailor_text::{Cleaner, PromptTemplate, RowLimits, RowReader};
use tempfile::TempPath;

use crate::upload::Header;
use crate::{Error, Result};

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

/// What it takes to ingest a file.
pub struct Work {
    pub limits: RowLimits,
    /// For what is in progress.
    pub folder: PathBuf,
    /// The program that reads Parquet files apart.
    pub parquet_reader: PathBuf,
}

impl Work {
    /// # Errors
    /// [`Error::File`]: the file cannot become a dataset. [`Error::Spool`]: the disk is full.
    pub fn ingest(&self, source: &Path, header: &Header) -> Result<Ingested> {
        let folder = &self.folder;
        let unfit = |source: tailor_text::Error| Error::File { file: header.file_name.clone(), source };
        // What cleaning writes is ours: a full disk is no fault of the file.
        let clean = |error: tailor_text::Error| match error {
            tailor_text::Error::Io(error) => spool::Error::from_io(folder, &error).into(),
            source => unfit(source),
        };
        let file = File::open(source).map_err(|error| unfit(error.into()))?;
        let mut cleaner = Cleaner::new(header.clean.clone(), folder).map_err(clean)?;
        let reader = RowReader::open_file(file, header.format, &header.columns, self.limits, &self.parquet_reader)
            .map_err(unfit)?;
        let roles = &reader.columns().roles;
        let kind = roles.kind();
        let template =
            PromptTemplate::parse(&header.prompt_template, roles.input().map(String::as_str)).map_err(unfit)?;
        if kind == DatasetKind::Conversation && template != PromptTemplate::default() {
            let problem = "a conversation is rendered by the base's chat template; leave the prompt template out";
            return Err(unfit(tailor_text::Error::PromptTemplate { problem: problem.into() }));
        }
        for outcome in reader {
            cleaner.push(outcome.map_err(unfit)?).map_err(clean)?;
        }
        let cleaned = cleaner.finish().map_err(clean)?;
        Ok(Ingested {
            kind,
            train: cleaned.train.path,
            validation: cleaned.validation.path,
            prompt_template: template.to_string(),
            report: cleaned.report,
        })
    }
}
