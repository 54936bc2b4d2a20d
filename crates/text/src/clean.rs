//! From rows as they were uploaded to a training and a validation split: duplicates out, labels balanced, rows split so
//! that validation shares no sentence with training.
//!
//! In this order: a row that was seen is a duplicate; a row that asks the same and is answered otherwise conflicts, and the
//! first one stays (of preferences only the same two answers the other way round conflict: more pairs to a prompt are
//! common); labels are balanced by drawing from the larger ones; the rest is split. All draws
//! depend on the seed alone, so the same file with the same options gives the same dataset.
//!
//! Rows and all that is known of each lie on disk, so that five gigabytes of them take no more memory than ten megabytes.

mod balance;
mod duplicates;
mod report;
mod split;
mod spool;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tailor_domain::Report;

use crate::Column;
use crate::error::{Error, Result};
use crate::rows::{Outcome, Row};
use crate::sort::Sorter;
use duplicates::Duplicates;
use report::Drops;
use spool::{Incoming, Side, Sides};

pub use spool::RowFile;

const MAX_LABELS: usize = 1000;
/// Labels that are told apart before it is known which rows stay.
const MAX_LABELS_SEEN: usize = 1 << 16;
/// Of one label: all that are seen are in memory, and those of the rows that stay in the report.
const MAX_LABEL_BYTES: usize = 256;

/// What a row is marked with: stays for training, dropped, stays for validation.
const STAYS: u8 = 0;
const DROPPED: u8 = 1;
const HIDDEN: u8 = 2;

/// How many rows validation gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Holdout {
    Fraction(f64),
    Rows(usize),
}

#[derive(Debug, Clone)]
pub struct CleanOptions {
    pub holdout: Holdout,
    /// No label keeps more than this many times the rows of the rarest; 0 switches balancing off.
    pub max_label_ratio: f64,
    /// The column that labels come from, for messages.
    pub label_column: String,
    pub seed: u64,
    /// Rows of each drop reason that the report shows.
    pub max_examples: usize,
}

impl Default for CleanOptions {
    fn default() -> Self {
        Self {
            holdout: Holdout::Fraction(0.1),
            max_label_ratio: 0.0,
            label_column: "label".into(),
            seed: 0,
            max_examples: 10,
        }
    }
}

impl CleanOptions {
    /// # Errors
    /// An option is outside its limits.
    pub fn validate(&self) -> Result<()> {
        if let Holdout::Fraction(fraction) = self.holdout
            && !(0.0..=0.5).contains(&fraction)
        {
            let problem = format!("{fraction} is outside 0 to 0.5");
            return Err(Error::Option { field: "validation_fraction", problem });
        }
        if self.max_label_ratio != 0.0 && !(1.0..=1e6).contains(&self.max_label_ratio) {
            let problem = format!("{} is neither 0 (off) nor from 1 to 1000000", self.max_label_ratio);
            return Err(Error::Option { field: "max_label_ratio", problem });
        }
        Ok(())
    }
}

/// The rows in the order of the file.
#[derive(Debug)]
pub struct Cleaned {
    pub train: RowFile,
    pub validation: RowFile,
    pub report: Report,
}

/// Takes rows one by one.
pub struct Cleaner {
    options: CleanOptions,
    folder: PathBuf,
    rows: Incoming,
    duplicates: Duplicates,
    /// The rows' sentences; None where no row is held out.
    sentences: Option<Sorter>,
    /// Numbers of labels; that of no label is 0.
    labels: HashMap<String, u32>,
    rows_read: u64,
    drops: Drops,
}

impl Cleaner {
    /// What is known of the rows lies in `folder` until the end, and the cleaned rows after it.
    ///
    /// # Errors
    /// An option is outside its limits; the folder cannot be written to.
    pub fn new(options: CleanOptions, folder: &Path) -> Result<Self> {
        options.validate()?;
        let holds_out = !matches!(options.holdout, Holdout::Rows(0) | Holdout::Fraction(0.0));
        Ok(Self {
            folder: folder.to_owned(),
            rows: Incoming::new(folder)?,
            duplicates: Duplicates::new(folder)?,
            sentences: holds_out.then(|| Sorter::new(Some(folder))).transpose()?,
            labels: HashMap::new(),
            rows_read: 0,
            drops: Drops::new(options.max_examples),
            options,
        })
    }

    /// # Errors
    /// The disk is full; labels without end, or one that is too long.
    pub fn push(&mut self, outcome: Outcome) -> Result<()> {
        self.rows_read += 1;
        let row = match outcome {
            Outcome::Dropped(dropped) => {
                self.drops.add(dropped);
                return Ok(());
            }
            Outcome::Row(row) => row,
        };
        let number = self.rows.len();
        if number >= u32::MAX as usize {
            return Err(Error::Option { field: "file", problem: format!("has more than {number} rows; split it") });
        }
        let label = self.label(&row)?;
        self.duplicates.note(number, &row.content)?;
        if let Some(sentences) = &mut self.sentences {
            split::note(sentences, number, &row.content)?;
        }
        self.rows.push(&row, label, report::bucket(&row.content))
    }

    fn label(&mut self, row: &Row) -> Result<u32> {
        let Some(label) = row.label.as_deref() else { return Ok(0) };
        if let Some(number) = self.labels.get(label) {
            return Ok(*number);
        }
        if self.labels.len() == MAX_LABELS_SEEN {
            let column = self.options.label_column.clone();
            return Err(Error::TooManyLabels { column, limit: MAX_LABELS });
        }
        if label.len() > MAX_LABEL_BYTES {
            let (column, bytes) = (self.options.label_column.clone(), label.len());
            return Err(Error::LabelTooLong { line: row.line, column, bytes, limit: MAX_LABEL_BYTES });
        }
        let number = self.labels.len() as u32 + 1;
        self.labels.insert(label.to_owned(), number);
        Ok(number)
    }

    /// # Errors
    /// No row is left, too few to split, or labels without end; the disk is full.
    pub fn finish(self) -> Result<Cleaned> {
        let Self { options, folder, rows, duplicates, sentences, labels, rows_read, mut drops } = self;
        let rows = rows.finish()?;
        let mut marks = Column::zeros(rows.len(), Some(&folder))?;
        duplicates.drop_from(&rows, &mut marks, &mut drops)?;
        let mut report = drops.report(rows_read);
        balance::balance(&options, &labels, &rows, &mut marks, &mut report, &folder)?;
        let mut kept = 0;
        marks.each(|_, mark| kept += usize::from(mark == STAYS));
        if kept == 0 {
            return Err(Error::NoRows { problem: report::why_none(&report) });
        }
        report.length_histogram = report::length_histogram(&rows.known, &marks);
        let wanted = match options.holdout {
            Holdout::Fraction(fraction) => (kept as f64 * fraction).round() as usize,
            Holdout::Rows(rows) => rows,
        };
        if let Some(sentences) = sentences {
            split::choose(&mut marks, kept, wanted, options.seed, sentences.finish()?, &folder)?;
        }
        let side = |row: usize| match marks.look(row) {
            STAYS => Some(Side::Train),
            HIDDEN => Some(Side::Validation),
            _ => None,
        };
        let Sides { train, validation } = rows.copy(side, &folder)?;
        (report.rows_train, report.rows_validation) = (train.rows, validation.rows);
        Ok(Cleaned { train, validation, report })
    }
}

#[cfg(test)]
mod tests;
