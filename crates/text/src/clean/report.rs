//! Figures about rows, for people.

use tailor_domain::Report;

use crate::rows::Row;

const FIRST_BUCKET: u64 = 16;

/// Rows by characters of all their texts together. Bounds double: 16, 32, 64, …
pub(super) fn length_histogram(rows: &[Row]) -> Vec<(u64, u64)> {
    let mut buckets: Vec<(u64, u64)> = Vec::new();
    for row in rows {
        let length = row.content.characters();
        let index = (length.max(1).div_ceil(FIRST_BUCKET)).next_power_of_two().trailing_zeros() as usize;
        while buckets.len() <= index {
            buckets.push((FIRST_BUCKET << buckets.len(), 0));
        }
        buckets[index].1 += 1;
    }
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
