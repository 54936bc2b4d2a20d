//! Figures about rows, for people.

use std::collections::BTreeMap;

use tailor_domain::dataset::DroppedRow;
use tailor_domain::{DropReason, Report};

use super::spool::Known;
use super::{Column, STAYS};
use crate::rows::RowContent;

const FIRST_BUCKET: u64 = 16;

/// Rows that were dropped, counted; of each reason the first of the file are shown. They may come in any order.
pub(super) struct Drops {
    most: usize,
    counts: BTreeMap<DropReason, u64>,
    /// By reason, then by line and by when they came.
    shown: BTreeMap<DropReason, BTreeMap<(u64, u64), DroppedRow>>,
    came: u64,
}

impl Drops {
    /// Shows at most `most` of a reason.
    pub fn new(most: usize) -> Self {
        Self { most, counts: BTreeMap::new(), shown: BTreeMap::new(), came: 0 }
    }

    pub fn add(&mut self, dropped: DroppedRow) {
        *self.counts.entry(dropped.reason).or_default() += 1;
        let shown = self.shown.entry(dropped.reason).or_default();
        shown.insert((dropped.line, self.came), dropped);
        self.came += 1;
        if shown.len() > self.most {
            shown.pop_last();
        }
    }

    /// Those that are shown in the order of the file.
    pub fn report(self, rows_read: u64) -> Report {
        let mut examples: Vec<((u64, u64), DroppedRow)> = self.shown.into_values().flatten().collect();
        examples.sort_by_key(|(place, _)| *place);
        let examples = examples.into_iter().map(|(_, dropped)| dropped).collect();
        Report { rows_read, dropped: self.counts, examples, ..Report::default() }
    }
}

/// Counts a row that is dropped after all that [`Drops`] saw, and shows it while there are fewer than `most` of its reason.
pub(super) fn drop_after(report: &mut Report, reason: DropReason, most: usize, row: impl FnOnce() -> DroppedRow) {
    let count = report.dropped.entry(reason).or_default();
    *count += 1;
    if *count <= most as u64 {
        report.examples.push(row());
    }
}

/// The bucket of a row by characters of all its texts together. Bounds double: 16, 32, 64, …
pub(super) fn bucket(content: &RowContent) -> u32 {
    (content.characters().max(1).div_ceil(FIRST_BUCKET)).next_power_of_two().trailing_zeros()
}

/// Rows that stay by their bucket, each with its bound.
pub(super) fn length_histogram(known: &Column<Known>, marks: &Column<u8>) -> Vec<(u64, u64)> {
    let mut buckets: Vec<(u64, u64)> = Vec::new();
    known.each(|row, known| {
        if marks.look(row) != STAYS {
            return;
        }
        while buckets.len() <= known.bucket as usize {
            buckets.push((FIRST_BUCKET << buckets.len(), 0));
        }
        if let Some((_, rows)) = buckets.get_mut(known.bucket as usize) {
            *rows += 1;
        }
    });
    buckets
}

pub(super) fn why_none(report: &Report) -> String {
    let dropped = |name: &str, count: u64| format!("{count} dropped as {name}");
    match report.dropped.iter().max_by_key(|(_, count)| **count) {
        None => "the file has a header and nothing else".into(),
        Some((reason, count)) => {
            let example = report.examples.iter().find(|example| example.reason == *reason);
            let first = example.map(|row| format!(", first line {}: {}", row.line, row.detail)).unwrap_or_default();
            format!("of {} rows {}{first}", report.rows_read, dropped(reason.as_str(), *count))
        }
    }
}
