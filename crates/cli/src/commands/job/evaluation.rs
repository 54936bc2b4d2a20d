//! What was measured on the held-out rows, as a table: base, adapter, and how far they lie apart.

use std::collections::HashMap;
use std::fmt::Write as _;

/// Title, name, factor, decimals.
const FIGURES: [(&str, &str, f64, usize); 6] = [
    ("exact match, %", "exact_match", 100.0, 1),
    ("GLEU", "gleu", 1.0, 3),
    ("chrF", "chrf", 1.0, 3),
    ("edit distance, chars", "edit_distance", 1.0, 2),
    ("the same, normalised", "edit_distance_normalized", 1.0, 3),
    ("input unchanged, %", "unchanged", 100.0, 1),
];

/// Prints the table where rows were predicted.
pub fn print(metrics: &HashMap<String, f64>) {
    if metrics.contains_key("base_exact_match") {
        println!("\n{}", table(metrics));
    }
}

/// Figures with their 95 % confidence intervals.
pub fn table(metrics: &HashMap<String, f64>) -> String {
    let mut lines = format!("{:<22}{:<26}{:<26}{}\n", "", "base", "adapter", "difference");
    for (title, name, factor, decimals) in FIGURES {
        let cell = |name: &str, signed: bool| {
            let [value, low, high] = ["", "_low", "_high"].map(|end| metrics.get(&format!("{name}{end}")).copied());
            let Some(value) = value else { return "-".to_owned() };
            let write = |value: f64| match signed {
                true => format!("{:+.decimals$}", value * factor),
                false => format!("{:.decimals$}", value * factor),
            };
            match low.zip(high) {
                Some((low, high)) => format!("{}  [{}, {}]", write(value), write(low), write(high)),
                None => write(value),
            }
        };
        let (base, adapter) = (cell(&format!("base_{name}"), false), cell(name, false));
        let difference = cell(&format!("{name}_difference"), true);
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "{title:<22}{base:<26}{adapter:<26}{difference}");
    }
    let rows = metrics.get("rows").copied().unwrap_or_default();
    lines + &format!("on {rows} held-out rows; in brackets 95 % confidence intervals over the choice of rows")
}

/// What the table does not show.
pub fn apart(metrics: &HashMap<String, f64>) -> HashMap<String, f64> {
    let shown = |name: &str| {
        let bare = name.strip_prefix("base_").unwrap_or(name);
        let ends = ["_low", "_high"].into_iter().find_map(|end| bare.strip_suffix(end)).unwrap_or(bare);
        let figure = ends.strip_suffix("_difference").unwrap_or(ends);
        figure == "rows" || FIGURES.iter().any(|(_, name, ..)| *name == figure)
    };
    metrics.iter().filter(|(name, _)| !shown(name)).map(|(name, value)| (name.clone(), *value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(pairs: &[(&str, f64)]) -> HashMap<String, f64> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn base_adapter_and_difference_stand_side_by_side_with_their_intervals() {
        let table = table(&metrics(&[
            ("rows", 944.0),
            ("exact_match", 0.8273),
            ("exact_match_low", 0.802),
            ("exact_match_high", 0.85),
            ("base_exact_match", 0.07),
            ("exact_match_difference", 0.757),
            ("exact_match_difference_low", 0.73),
            ("exact_match_difference_high", 0.78),
        ]));
        let line = table.lines().nth(1).expect("a line");
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>().join(" "),
            "exact match, % 7.0 82.7 [80.2, 85.0] +75.7 [+73.0, +78.0]"
        );
        assert!(table.contains("on 944 held-out rows") && table.contains("95 %"));
    }

    #[test]
    fn what_the_table_shows_is_not_said_twice() {
        let left = apart(&metrics(&[
            ("train_loss", 0.1),
            ("base_gleu_low", 0.1),
            ("gleu_difference_high", 0.1),
            ("rows", 1.0),
            ("chrf", 0.1),
        ]));
        assert_eq!(left, metrics(&[("train_loss", 0.1)]));
    }
}
