//! Rows of labels that have far more than the rarest are drawn from.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use tailor_domain::dataset::DroppedRow;
use tailor_domain::{DropReason, Report};

use super::report::drop_after;
use super::spool::Spooled;
use super::{CleanOptions, DROPPED, MAX_LABELS, STAYS};
use crate::Column;
use crate::error::{Error, Result};
use crate::seed::SplitMix;
use crate::sort::Sorter;

/// A draw of its own, so that balancing and splitting do not depend on each other.
const BALANCING: u64 = 0x6261_6c61_6e63_6521;

/// Marks the surplus as dropped. Rows without a label count as one label, the empty one.
pub(super) fn balance(
    options: &CleanOptions,
    labels: &HashMap<String, u32>,
    rows: &Spooled,
    marks: &mut Column<u8>,
    report: &mut Report,
    folder: &Path,
) -> Result<()> {
    let mut counts = vec![0u64; labels.len() + 1];
    rows.known.each(|row, known| {
        if marks.look(row) == STAYS {
            counts[known.label as usize] += 1;
        }
    });
    if counts.iter().skip(1).all(|count| *count == 0) {
        return Ok(());
    }
    let named = labels.iter().map(|(label, number)| (label.as_str(), *number)).chain([("", 0)]);
    let present: BTreeMap<&str, u32> = named.filter(|(_, number)| counts[*number as usize] > 0).collect();
    if present.len() > MAX_LABELS {
        return Err(Error::TooManyLabels { column: options.label_column.clone(), limit: MAX_LABELS });
    }
    let by_name = |counts: &[u64]| -> BTreeMap<String, u64> {
        present.iter().map(|(label, number)| ((*label).to_owned(), counts[*number as usize])).collect()
    };
    report.labels_before = by_name(&counts);
    let rarest = present.values().map(|number| counts[*number as usize]).min().unwrap_or(0);
    if options.max_label_ratio != 0.0 {
        let most = (rarest as f64 * options.max_label_ratio).floor() as usize;
        let mut random = SplitMix::new(options.seed ^ BALANCING);
        let too_many = present.iter().filter(|(_, number)| counts[**number as usize] as usize > most);
        let too_many: Vec<(&str, u32)> = too_many.map(|(label, number)| (*label, *number)).collect();
        let shown = options.max_examples;
        for (label, number) in too_many {
            let mut surplus = rows_of(number, counts[number as usize] as usize, rows, marks, folder)?;
            random.shuffle(&mut surplus);
            let mut in_order = Sorter::new(Some(folder))?;
            for at in most..surplus.len() {
                in_order.push([u64::from(surplus.look(at)), 0])?;
            }
            for row in in_order.finish()? {
                let row = row?[0] as usize;
                marks.put(row, DROPPED);
                let dropped = || DroppedRow {
                    line: rows.known.look(row).line,
                    field: None,
                    reason: DropReason::Balanced,
                    detail: format!("label {label:?} keeps {most} rows"),
                };
                drop_after(report, DropReason::Balanced, shown, dropped);
            }
            counts[number as usize] = most as u64;
        }
    }
    rows.known.release();
    report.labels_after = by_name(&counts);
    Ok(())
}

/// The rows of a label, in order.
fn rows_of(label: u32, count: usize, rows: &Spooled, marks: &Column<u8>, folder: &Path) -> Result<Column> {
    let mut found = Column::zeros(count, Some(folder))?;
    let mut next = 0;
    rows.known.each(|row, known| {
        if known.label == label && marks.look(row) == STAYS {
            found.put(next, row as u32);
            next += 1;
        }
    });
    Ok(found)
}
