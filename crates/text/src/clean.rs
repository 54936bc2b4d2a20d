//! From rows as they were uploaded to a training and a validation split: duplicates out, labels balanced, rows split so
//! that validation shares no sentence with training.
//!
//! In this order: a row that was seen is a duplicate; a row that asks the same and is answered otherwise conflicts, and the
//! first one stays (of preferences only the same two answers the other way round conflict: more pairs to a prompt are
//! common); labels are balanced by drawing from the larger ones; the rest is split. All draws
//! depend on the seed alone, so the same file with the same options gives the same dataset.

mod report;
mod split;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use tailor_domain::dataset::DroppedRow;
use tailor_domain::{DropReason, Report};

use crate::chat::Message;
use crate::error::{Error, Result};
use crate::rows::{Outcome, Row, RowContent};
use crate::seed::SplitMix;

const MAX_LABELS: usize = 1000;

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
    /// Bytes of kept text; more is refused, because all of it is held in memory.
    pub max_bytes: u64,
}

impl Default for CleanOptions {
    fn default() -> Self {
        Self {
            holdout: Holdout::Fraction(0.1),
            max_label_ratio: 0.0,
            label_column: "label".into(),
            seed: 0,
            max_examples: 10,
            max_bytes: 1 << 30,
        }
    }
}

impl CleanOptions {
    fn validate(&self) -> Result<()> {
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

#[derive(Debug, Clone)]
pub struct Cleaned {
    /// In the order of the file.
    pub train: Vec<Row>,
    pub validation: Vec<Row>,
    pub report: Report,
}

/// Takes rows one by one.
pub struct Cleaner {
    options: CleanOptions,
    rows: Vec<Row>,
    bytes: u64,
    /// Hash of what is asked to the rows that ask it: almost always one.
    by_asked: HashMap<u64, Vec<usize>>,
    hasher: RandomState,
    report: Report,
    shown: BTreeMap<DropReason, usize>,
}

impl Cleaner {
    /// # Errors
    /// An option is outside its limits.
    pub fn new(options: CleanOptions) -> Result<Self> {
        options.validate()?;
        Ok(Self {
            options,
            rows: Vec::new(),
            bytes: 0,
            by_asked: HashMap::new(),
            hasher: RandomState::new(),
            report: Report::default(),
            shown: BTreeMap::new(),
        })
    }

    /// # Errors
    /// The kept rows take more memory than allowed.
    pub fn push(&mut self, outcome: Outcome) -> Result<()> {
        self.report.rows_read += 1;
        let row = match outcome {
            Outcome::Dropped(dropped) => {
                self.drop_row(dropped);
                return Ok(());
            }
            Outcome::Row(row) => row,
        };
        let seen = self.by_asked.entry(self.hasher.hash_one(asked(&row.content))).or_default();
        let earlier = seen.iter().filter_map(|index| self.rows.get(*index));
        if let Some((first, clash)) = earlier.filter_map(|first| Some((first, clash(first, &row)?))).next() {
            let (reason, detail) = match clash {
                Clash::Same => (DropReason::Duplicate, format!("the same as line {}", first.line)),
                Clash::OtherAnswer => {
                    (DropReason::Conflict, format!("line {} has the same input with another target", first.line))
                }
                Clash::Reversed => {
                    (DropReason::Conflict, format!("line {} prefers the other of the same two answers", first.line))
                }
            };
            self.drop_row(DroppedRow { line: row.line, field: None, reason, detail });
            return Ok(());
        }
        self.bytes += row.content.heap_bytes() + size_of::<Row>() as u64;
        if self.bytes > self.options.max_bytes {
            return Err(Error::TooMuch { limit: self.options.max_bytes });
        }
        seen.push(self.rows.len());
        self.rows.push(row);
        Ok(())
    }

    /// # Errors
    /// No row is left, too few to split, or labels without end.
    pub fn finish(mut self) -> Result<Cleaned> {
        self.balance()?;
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Err(Error::NoRows { problem: report::why_none(&self.report) });
        }
        self.report.length_histogram = report::length_histogram(&rows);
        let wanted = match self.options.holdout {
            Holdout::Fraction(fraction) => (rows.len() as f64 * fraction).round() as usize,
            Holdout::Rows(rows) => rows,
        };
        let in_validation = split::choose(&rows, wanted, self.options.seed)?;
        let mut cleaned = Cleaned { train: Vec::new(), validation: Vec::new(), report: self.report };
        for (row, hidden) in rows.into_iter().zip(in_validation) {
            if hidden { cleaned.validation.push(row) } else { cleaned.train.push(row) }
        }
        cleaned.report.rows_train = cleaned.train.len() as u64;
        cleaned.report.rows_validation = cleaned.validation.len() as u64;
        Ok(cleaned)
    }

    fn drop_row(&mut self, dropped: DroppedRow) {
        *self.report.dropped.entry(dropped.reason).or_default() += 1;
        let shown = self.shown.entry(dropped.reason).or_default();
        if *shown < self.options.max_examples {
            *shown += 1;
            self.report.examples.push(dropped);
        }
    }

    /// Rows without a label count as one label, the empty one.
    fn balance(&mut self) -> Result<()> {
        if self.rows.iter().all(|row| row.label.is_none()) {
            return Ok(());
        }
        let label = |row: &Row| row.label.clone().unwrap_or_default();
        let mut by_label: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, row) in self.rows.iter().enumerate() {
            by_label.entry(label(row)).or_default().push(index);
            if by_label.len() > MAX_LABELS {
                let column = self.options.label_column.clone();
                return Err(Error::TooManyLabels { column, limit: MAX_LABELS });
            }
        }
        let count = |by_label: &BTreeMap<String, Vec<usize>>| -> BTreeMap<String, u64> {
            by_label.iter().map(|(label, rows)| (label.clone(), rows.len() as u64)).collect()
        };
        self.report.labels_before = count(&by_label);
        let rarest = by_label.values().map(Vec::len).min().unwrap_or(0);
        if self.options.max_label_ratio != 0.0 {
            let most = (rarest as f64 * self.options.max_label_ratio).floor() as usize;
            self.keep_at_most(most, &mut by_label);
        }
        self.report.labels_after = count(&by_label);
        Ok(())
    }

    fn keep_at_most(&mut self, most: usize, by_label: &mut BTreeMap<String, Vec<usize>>) {
        // A draw of its own, so that balancing and splitting do not depend on each other.
        const BALANCING: u64 = 0x6261_6c61_6e63_6521;
        let mut random = SplitMix::new(self.options.seed ^ BALANCING);
        let mut out: HashSet<usize> = HashSet::new();
        for (label, indices) in by_label.iter_mut().filter(|(_, indices)| indices.len() > most) {
            random.shuffle(indices);
            let mut surplus = indices.split_off(most);
            surplus.sort_unstable();
            for index in surplus {
                let Some(row) = self.rows.get(index) else { continue };
                let detail = format!("label {label:?} keeps {most} rows");
                let line = row.line;
                self.drop_row(DroppedRow { line, field: None, reason: DropReason::Balanced, detail });
                out.insert(index);
            }
        }
        let mut index = 0;
        self.rows.retain(|_| {
            index += 1;
            !out.contains(&(index - 1))
        });
    }
}

/// Why two rows cannot both stay.
enum Clash {
    Same,
    OtherAnswer,
    Reversed,
}

/// What a row asks, and all that could make it another question.
#[derive(Hash, PartialEq)]
enum Asked<'a> {
    Text(&'a str),
    Turns(Vec<String>),
}

fn asked(content: &RowContent) -> Asked<'_> {
    match content {
        RowContent::InputTarget { input: text, .. } | RowContent::Preference { prompt: text, .. } => Asked::Text(text),
        RowContent::Conversation { messages } => {
            let before = messages.split_last().map_or(&[][..], |(_, before)| before);
            Asked::Turns(before.iter().map(Message::to_json).collect())
        }
    }
}

fn clash(first: &Row, row: &Row) -> Option<Clash> {
    if first.content == row.content {
        return Some(Clash::Same);
    }
    if asked(&first.content) != asked(&row.content) {
        return None;
    }
    match (&first.content, &row.content) {
        (
            RowContent::Preference { chosen, rejected, .. },
            RowContent::Preference { chosen: better, rejected: worse, .. },
        ) => (chosen == worse && rejected == better).then_some(Clash::Reversed),
        _ => Some(Clash::OtherAnswer),
    }
}

#[cfg(test)]
mod tests;
