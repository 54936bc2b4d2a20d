//! How near predictions are to their references. All figures are over whole texts, trimmed; 1 is best, except for the
//! edit distances, where 0 is.
//!
//! - `exact_match`: share of predictions equal to the reference.
//! - `edit_distance`: mean Levenshtein distance in characters; `edit_distance_normalized`: divided by the longer text.
//! - `gleu`: Google's GLEU (Wu et al. 2016, arXiv 1609.08144 §8): the smaller of n-gram precision and recall, n = 1 to 4,
//!   per sentence, then the mean. Not the GLEU of grammatical error correction, which is undefined for short sentences.
//!   Words and single punctuation marks are the tokens.
//! - `chrf`: chrF2 (Popović 2015) over the corpus with sacrebleu's defaults (n = 1 to 6, β = 2, no blanks), from 0 to 1.
//! - `unchanged`: share of predictions equal to the input: a model that copies shows here.
//!
//! Each figure but `rows` has a 95 % confidence interval beside it, `…_low` and `…_high`: how far it would move if other
//! rows of the same kind had been held out ([`interval`]).

mod comparison;
mod interval;

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

pub use comparison::Comparison;

const GLEU_ORDERS: usize = 4;
const CHRF_ORDERS: usize = 6;
const CHRF_BETA: f64 = 2.0;
/// Characters of a text that are compared; what lies beyond counts as different. Bounds the quadratic work.
const MAX_COMPARED: usize = 8192;

/// Levenshtein distance in characters.
pub fn edit_distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let prefix = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
    let (left, right) = (&left[prefix..], &right[prefix..]);
    let suffix = left.iter().rev().zip(right.iter().rev()).take_while(|(a, b)| a == b).count();
    let (left, right) = (&left[..left.len() - suffix], &right[..right.len() - suffix]);

    let beyond = left.len().saturating_sub(MAX_COMPARED).max(right.len().saturating_sub(MAX_COMPARED));
    let (left, right) = (&left[..left.len().min(MAX_COMPARED)], &right[..right.len().min(MAX_COMPARED)]);
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()] + beyond
}

/// Google's GLEU of one sentence, 0 to 1.
pub fn gleu(prediction: &str, reference: &str) -> f64 {
    let (predicted, expected) = (words(prediction), words(reference));
    let mut counts = NgramCounts::default();
    for order in 1..=GLEU_ORDERS {
        counts.add(&NgramCounts::of(&predicted, &expected, order));
    }
    match counts.predicted.max(counts.expected) {
        0 => f64::from(prediction.trim() == reference.trim()),
        larger => counts.matched as f64 / larger as f64,
    }
}

/// chrF2 of one sentence, 0 to 1.
pub fn chrf(prediction: &str, reference: &str) -> f64 {
    let mut stats = ChrfStats::default();
    stats.add(prediction, reference);
    stats.score()
}

/// The figures, in the order in which they are summed and drawn.
const FIGURES: usize = 6;
const NAMES: [&str; FIGURES] =
    ["exact_match", "unchanged", "edit_distance", "edit_distance_normalized", "gleu", "chrf"];
/// Those that are a share of rows, each of which is counted or not.
const SHARES: [&str; 2] = ["exact_match", "unchanged"];

/// Scores rows one by one.
#[derive(Debug, Clone, Default)]
pub struct Scorer {
    rows: Vec<Sums>,
}

impl Scorer {
    pub fn add(&mut self, prediction: &str, reference: &str, source: &str) {
        let (prediction, reference, source) = (prediction.trim(), reference.trim(), source.trim());
        let distance = edit_distance(prediction, reference);
        let longer = prediction.chars().count().max(reference.chars().count());
        let mut chrf = ChrfStats::default();
        chrf.add(prediction, reference);
        self.rows.push(Sums {
            rows: 1,
            exact: u64::from(prediction == reference),
            unchanged: u64::from(prediction == source),
            edits: distance as u64,
            edits_normalized: if longer == 0 { 0.0 } else { distance as f64 / longer as f64 },
            gleu: gleu(prediction, reference),
            chrf,
        });
    }

    /// The figures by name with their intervals; only `rows` when there were none.
    pub fn finish(&self) -> BTreeMap<String, f64> {
        let mut scores = BTreeMap::from([("rows".to_owned(), self.rows.len() as f64)]);
        if !self.rows.is_empty() {
            let drawn = interval::resample(&[&self.rows]);
            scores.extend(self.named("", &drawn.iter().map(|systems| systems[0]).collect::<Vec<_>>()));
        }
        scores
    }

    fn total(&self) -> Sums {
        let mut total = Sums::default();
        self.rows.iter().for_each(|row| total.add(row));
        total
    }

    /// The figures of at least one row, and the intervals that resampled figures give.
    fn named(&self, prefix: &str, resampled: &[[f64; FIGURES]]) -> BTreeMap<String, f64> {
        let total = self.total();
        let mut named = BTreeMap::new();
        for ((at, name), value) in NAMES.into_iter().enumerate().zip(total.figures()) {
            let (low, high) = if SHARES.contains(&name) {
                interval::wilson(value, total.rows)
            } else {
                interval::percentiles(resampled.iter().map(|figures| figures[at]).collect())
            };
            insert(&mut named, &format!("{prefix}{name}"), value, (low, high));
        }
        named
    }
}

fn insert(named: &mut BTreeMap<String, f64>, name: &str, value: f64, (low, high): (f64, f64)) {
    named.insert(name.to_owned(), value);
    named.insert(format!("{name}_low"), low);
    named.insert(format!("{name}_high"), high);
}

/// What one row or many add up to. Every figure follows from sums over rows, so a resample is a sum as well.
#[derive(Debug, Clone, Default)]
struct Sums {
    rows: u64,
    exact: u64,
    unchanged: u64,
    edits: u64,
    edits_normalized: f64,
    gleu: f64,
    chrf: ChrfStats,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.exact += other.exact;
        self.unchanged += other.unchanged;
        self.edits += other.edits;
        self.edits_normalized += other.edits_normalized;
        self.gleu += other.gleu;
        self.chrf.0.iter_mut().zip(&other.chrf.0).for_each(|(sum, counts)| sum.add(counts));
    }

    /// In the order of [`NAMES`]; of at least one row.
    fn figures(&self) -> [f64; FIGURES] {
        let rows = self.rows as f64;
        [
            self.exact as f64 / rows,
            self.unchanged as f64 / rows,
            self.edits as f64 / rows,
            self.edits_normalized / rows,
            self.gleu / rows,
            self.chrf.score(),
        ]
    }
}

/// Words, and punctuation marks one by one.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for part in text.split_whitespace() {
        let mut start = 0;
        for (at, character) in part.char_indices() {
            if character.is_alphanumeric() {
                continue;
            }
            if start < at {
                words.push(&part[start..at]);
            }
            start = at + character.len_utf8();
            words.push(&part[at..start]);
        }
        if start < part.len() {
            words.push(&part[start..]);
        }
    }
    words
}

#[derive(Debug, Clone, Copy, Default)]
struct NgramCounts {
    matched: u64,
    predicted: u64,
    expected: u64,
}

impl NgramCounts {
    fn of<T: Eq + Hash>(predicted: &[T], expected: &[T], order: usize) -> Self {
        let mut left: HashMap<&[T], u64> = HashMap::new();
        for gram in expected.windows(order) {
            *left.entry(gram).or_default() += 1;
        }
        let mut matched = 0;
        for gram in predicted.windows(order) {
            if let Some(count) = left.get_mut(gram).filter(|count| **count > 0) {
                *count -= 1;
                matched += 1;
            }
        }
        let grams = |length: usize| (length + 1).saturating_sub(order) as u64;
        Self { matched, predicted: grams(predicted.len()), expected: grams(expected.len()) }
    }

    fn add(&mut self, other: &Self) {
        self.matched += other.matched;
        self.predicted += other.predicted;
        self.expected += other.expected;
    }
}

#[derive(Debug, Clone, Default)]
struct ChrfStats([NgramCounts; CHRF_ORDERS]);

impl ChrfStats {
    fn add(&mut self, prediction: &str, reference: &str) {
        let bare = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<Vec<char>>();
        let (predicted, expected) = (bare(prediction), bare(reference));
        for (index, sum) in self.0.iter_mut().enumerate() {
            let mut counts = NgramCounts::of(&predicted, &expected, index + 1);
            // As in sacrebleu: an order that the reference is too short for is no fault of the prediction.
            if counts.expected == 0 {
                counts.predicted = 0;
            }
            sum.add(&counts);
        }
    }

    fn score(&self) -> f64 {
        let usable: Vec<_> = self.0.iter().filter(|sum| sum.predicted > 0 && sum.expected > 0).collect();
        if usable.is_empty() {
            return 0.0;
        }
        let orders = usable.len() as f64;
        let precision = usable.iter().map(|sum| sum.matched as f64 / sum.predicted as f64).sum::<f64>() / orders;
        let recall = usable.iter().map(|sum| sum.matched as f64 / sum.expected as f64).sum::<f64>() / orders;
        if precision + recall == 0.0 {
            return 0.0;
        }
        let weight = CHRF_BETA * CHRF_BETA;
        (1.0 + weight) * precision * recall / (weight * precision + recall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-9
    }

    #[test]
    fn edit_distance_is_levenshtein_in_characters() {
        for (left, right, distance) in [
            ("", "", 0),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("flaw", "lawn", 2),
            ("über", "uber", 1),
            ("aa", "aaa", 1),
        ] {
            assert_eq!(edit_distance(left, right), distance, "{left} {right}");
            assert_eq!(edit_distance(right, left), distance, "{right} {left}");
        }
    }

    #[test]
    fn very_long_texts_are_compared_in_bounded_time() {
        let (left, right) = ("a".repeat(100_000), "b".repeat(90_000));
        assert_eq!(edit_distance(&left, &right), 100_000);
    }

    #[test]
    fn gleu_is_the_smaller_of_precision_and_recall() {
        assert!(near(gleu("She goes home .", "She goes home ."), 1.0));
        // Words 3 of 4, pairs 1 of 3, triples 0 of 2, quadruples 0 of 1: 4 of 10.
        assert!(near(gleu("She go home .", "She goes home ."), 0.4));
        // The prediction's 1+0 grams against the reference's 3+2+1.
        assert!(near(gleu("a", "a b c"), 1.0 / 6.0));
        assert!(near(gleu("home.", "home ."), 1.0), "punctuation is a token of its own");
        assert!(near(gleu("", ""), 1.0) && near(gleu("", "a"), 0.0));
    }

    #[test]
    fn chrf_ignores_blanks_and_prefers_recall() {
        assert!(near(chrf("the cat", "thecat"), 1.0));
        assert!(near(chrf("xyz", "abc"), 0.0) && near(chrf("", "abc"), 0.0));
        // Orders 1, 2 and 3 of "abcd" against "abc": precision 3/4, 2/3, 1/2; recall 1. F2 = 5PR/(4P+R).
        let precision = (0.75 + 2.0 / 3.0 + 0.5) / 3.0;
        assert!(near(chrf("abcd", "abc"), 5.0 * precision / (4.0 * precision + 1.0)));
        assert!(chrf("abcd", "abc") > chrf("abc", "abcd"), "a missing letter costs more than one too many");
    }

    #[test]
    fn a_scorer_averages_over_rows_and_sees_copies() {
        let mut scorer = Scorer::default();
        scorer.add("I am here.", " I am here. ", "I is here.");
        scorer.add("I is there.", "I am there.", "I is there.");
        let scores = scorer.finish();
        assert_eq!(scores.len(), 1 + 3 * FIGURES);
        assert_eq!(scores["rows"], 2.0);
        assert_eq!(scores["exact_match"], 0.5);
        assert_eq!(scores["unchanged"], 0.5);
        assert_eq!(scores["edit_distance"], 1.0);
        assert!(near(scores["edit_distance_normalized"], 1.0 / 11.0));
        assert_eq!(Scorer::default().finish().len(), 1, "no rows, no averages");
    }
    #[test]
    fn every_figure_lies_within_its_interval() {
        let mut scorer = Scorer::default();
        for row in 0..50 {
            let prediction = if row % 3 == 0 { "She goes home." } else { "She go home." };
            scorer.add(prediction, "She goes home.", "She go home.");
        }
        let scores = scorer.finish();
        for name in NAMES {
            let [value, low, high] = ["", "_low", "_high"].map(|end| scores[&format!("{name}{end}")]);
            assert!(low < value && value < high, "{name}: {low} {value} {high}");
            assert!(high - low < 1.0, "{name}: {low} {high}");
        }
        assert_eq!(scores, scorer.finish(), "the same rows give the same intervals");
    }
}
