//! Two systems on the same rows: an adapter and its base.

use std::collections::BTreeMap;

use super::{FIGURES, NAMES, Scorer, insert, interval};

/// The figures of both, and how far they lie apart.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    adapter: Scorer,
    base: Scorer,
}

impl Comparison {
    pub fn add(&mut self, adapter: &str, base: &str, reference: &str, source: &str) {
        self.adapter.add(adapter, reference, source);
        self.base.add(base, reference, source);
    }

    /// The adapter's figures under their names, the base's as `base_…`, and adapter minus base as `…_difference`, each with
    /// its interval; only `rows` when there were none. An interval of a difference that does not hold 0 says that the
    /// adapter made one, not the choice of rows.
    pub fn finish(&self) -> BTreeMap<String, f64> {
        let mut scores = BTreeMap::from([("rows".to_owned(), self.adapter.rows.len() as f64)]);
        if self.adapter.rows.is_empty() {
            return scores;
        }
        let drawn = interval::resample(&[&self.adapter.rows, &self.base.rows]);
        let of = |system: usize| drawn.iter().map(|systems| systems[system]).collect::<Vec<[f64; FIGURES]>>();
        scores.extend(self.adapter.named("", &of(0)));
        scores.extend(self.base.named("base_", &of(1)));
        let (adapter, base) = (self.adapter.total().figures(), self.base.total().figures());
        for (at, name) in NAMES.into_iter().enumerate() {
            let differences = drawn.iter().map(|[adapter, base]| adapter[at] - base[at]).collect();
            let name = format!("{name}_difference");
            insert(&mut scores, &name, adapter[at] - base[at], interval::percentiles(differences));
        }
        scores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_surer_than_the_two_figures_that_it_is_of() {
        let mut comparison = Comparison::default();
        // Rows differ much in how hard they are; the adapter saves two letters in each.
        for row in 0..60 {
            let reference = "y".repeat(30);
            let wrong = |letters: usize| format!("{}{}", "x".repeat(letters), "y".repeat(30 - letters));
            let letters = 2 + row % 20;
            comparison.add(&wrong(letters - 2), &wrong(letters), &reference, "");
        }
        let scores = comparison.finish();
        assert_eq!(scores["edit_distance_difference"], -2.0);
        assert_eq!((scores["edit_distance_difference_low"], scores["edit_distance_difference_high"]), (-2.0, -2.0));
        assert!(scores["edit_distance_high"] - scores["edit_distance_low"] > 1.0, "{scores:?}");
        let (exact, base) = (scores["exact_match"], scores["base_exact_match"]);
        assert_eq!((exact, base, scores["exact_match_difference"]), (0.05, 0.0, 0.05));
        assert_eq!(scores["rows"], 60.0);
        assert_eq!(Comparison::default().finish().len(), 1, "no rows, no figures");
    }

    #[test]
    fn each_system_is_scored_as_if_it_stood_alone() {
        let (mut comparison, mut alone) = (Comparison::default(), Scorer::default());
        for (adapter, base, reference) in [("a b", "a", "a b"), ("c", "d", "e"), ("ff", "f", "fff")] {
            comparison.add(adapter, base, reference, "");
            alone.add(adapter, reference, "");
        }
        let scores = comparison.finish();
        for (name, value) in alone.finish() {
            assert_eq!(scores[&name], value, "{name}");
        }
    }
}
