//! How sure a figure is, given that few rows were measured: intervals that hold the true value 95 times in 100.
//!
//! - Shares of rows: the score interval (Wilson 1927, Probable inference, the law of succession, and statistical
//!   inference), which stays sensible near 0 and 1 and for few rows (Brown, Cai, DasGupta 2001).
//! - Everything else, chrF of a corpus and differences of two systems included: the percentile bootstrap over rows (Efron
//!   1979). Two systems are compared on the same draws (Koehn 2004, Statistical significance tests for machine translation
//!   evaluation), so what makes a row hard for both does not widen the interval of their difference.
//!
//! The draws are seeded: the same predictions give the same interval on every machine.

use super::{FIGURES, Sums};
use crate::seed::SplitMix;

/// Resamples, and the fewest of them for a great many rows.
const RESAMPLES: usize = 1000;
const MIN_RESAMPLES: usize = 200;
/// Rows drawn over all resamples, where that leaves enough of them: seconds, not minutes.
const MAX_DRAWS: usize = 100_000_000;
const SEED: u64 = 95;
/// Left out at each end.
const TAIL: f64 = 0.025;
/// The standard normal distribution's quantile at 1 - [`TAIL`].
const Z: f64 = 1.959_963_984_540_054;

/// Wilson's score interval of a share of `rows`, of which there is at least one.
pub fn wilson(share: f64, rows: u64) -> (f64, f64) {
    let rows = rows as f64;
    let squared = Z * Z;
    let scale = 1.0 + squared / rows;
    let centre = (share + squared / (2.0 * rows)) / scale;
    let half = Z / scale * (share * (1.0 - share) / rows + squared / (4.0 * rows * rows)).sqrt();
    // In exact arithmetic 0 and 1 are met; rounding must not leave the figure outside its interval.
    ((centre - half).clamp(0.0, share), (centre + half).clamp(share, 1.0))
}

/// The figures of each system, on each resample of the rows; the systems have the same rows, at least one.
pub fn resample<const SYSTEMS: usize>(systems: &[&[Sums]; SYSTEMS]) -> Vec<[[f64; FIGURES]; SYSTEMS]> {
    let rows = systems.iter().map(|rows| rows.len()).min().unwrap_or(0);
    let count = (MAX_DRAWS / rows.max(1)).clamp(MIN_RESAMPLES, RESAMPLES);
    let mut random = SplitMix::new(SEED);
    (0..count)
        .map(|_| {
            let mut sums: [Sums; SYSTEMS] = std::array::from_fn(|_| Sums::default());
            for _ in 0..rows {
                let row = random.below(rows);
                sums.iter_mut().zip(systems).for_each(|(sum, rows)| sum.add(&rows[row]));
            }
            sums.each_ref().map(Sums::figures)
        })
        .collect()
}

/// What lies between the tails of resampled values, of which there is at least one.
pub fn percentiles(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let at = |share: f64| values.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN);
    (at(TAIL), at(1.0 - TAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: (f64, f64), wanted: (f64, f64)) {
        let close = (found.0 - wanted.0).abs() < 5e-5 && (found.1 - wanted.1).abs() < 5e-5;
        assert!(close, "{found:?} is not {wanted:?}");
    }

    #[test]
    fn wilsons_interval_has_the_published_values() {
        // Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3.
        near(wilson(81.0 / 263.0, 263), (0.2553, 0.3662));
        near(wilson(15.0 / 148.0, 148), (0.0624, 0.1605));
        near(wilson(0.0, 20), (0.0, 0.1611));
        near(wilson(1.0 / 29.0, 29), (0.0061, 0.1718));
        assert_eq!(wilson(1.0, 5).1, 1.0);
    }

    #[test]
    fn percentiles_leave_a_fortieth_out_at_each_end() {
        assert_eq!(percentiles((0..=1000).map(f64::from).rev().collect()), (25.0, 975.0));
        assert_eq!(percentiles(vec![7.0]), (7.0, 7.0));
    }

    #[test]
    fn the_bootstrap_of_a_mean_is_as_wide_as_its_standard_error_says() {
        let rows: Vec<Sums> = (0..400).map(|row| Sums { rows: 1, edits: row % 5, ..Sums::default() }).collect();
        let means: Vec<f64> = resample(&[&rows]).iter().map(|systems| systems[0][2]).collect();
        let (low, high) = percentiles(means);
        // 0 to 4 in equal parts: mean 2, standard deviation the root of 2.
        let half = Z * 2f64.sqrt() / 20.0;
        assert!((low - (2.0 - half)).abs() < 0.015 && (high - (2.0 + half)).abs() < 0.015, "{low} {high} for ±{half}");
    }
}
