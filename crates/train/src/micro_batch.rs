//! How many rows go through the model at once, where the settings leave it open.
//!
//! A device that refuses memory tells by refusing, and the trainer then halves the pass. A host does not refuse: it swaps, or
//! its kernel ends the process. So on a CPU the longest row goes through once before the first step, then two of it, and
//! what that took says how many fit into what is free.

use tailor_torch::{PeakMemory, available_bytes};

/// What is left for everything else: of the free bytes this share is used.
const USED_SHARE: f64 = 0.8;

/// The most rows, up to `batch`, whose pass fits into the host's free memory; None where that cannot be told. `pass` makes
/// the gradient of this many copies of the longest row and is called at most twice.
pub fn that_fits(batch: usize, mut pass: impl FnMut(usize) -> bool) -> Option<Fit> {
    let mut growth = |rows: usize| {
        let peak = PeakMemory::reset().ok()?;
        pass(rows).then(|| peak.growth_bytes().ok())?
    };
    let available = available_bytes()?;
    let one = growth(1)?;
    // One row stands for the constant part too, so a batch that fits by it fits.
    if rows_in(available, 0, one) >= batch {
        return Some(Fit { rows: batch, available, row: one });
    }
    let two = growth(2)?.max(one);
    let row = (two - one).max(one / 8); // a measurement is never trusted to say that a row costs nothing
    Some(Fit { rows: rows_in(available, one.saturating_sub(row), row).clamp(1, batch), available, row })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    pub rows: usize,
    /// Free bytes.
    pub available: u64,
    /// Bytes that the longest row takes.
    pub row: u64,
}

fn rows_in(available: u64, constant: u64, row: u64) -> usize {
    let free = (available as f64 * USED_SHARE) as u64;
    (free.saturating_sub(constant) / row.max(1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes and touches this many bytes, and lets them go.
    fn take(bytes: usize) -> bool {
        let taken = vec![1u8; bytes];
        std::hint::black_box(&taken).iter().step_by(4096).all(|byte| *byte == 1)
    }

    #[test]
    fn a_batch_that_one_row_shows_to_fit_is_taken_whole() {
        let mut passes = Vec::new();
        let fit = that_fits(8, |rows| {
            passes.push(rows);
            take(rows << 20)
        });
        assert_eq!((fit.map(|fit| fit.rows), passes), (Some(8), vec![1]));
    }

    #[test]
    fn of_rows_that_are_too_large_as_many_as_fit_are_taken() {
        let available = available_bytes().expect("Linux says");
        // 32 MiB a row and 64 MiB besides: measured, and not what a constant part would make of it.
        let batch = (available >> 25) as usize * 2;
        let fit = that_fits(batch, |rows| take((64 << 20) + (rows << 25))).expect("measured");
        let row = fit.row as f64 / f64::from(1 << 25);
        assert!((0.9..1.2).contains(&row), "a row takes 32 MiB, measured {} MiB", fit.row >> 20);
        assert!(fit.rows > 1 && fit.rows < batch && fit.rows as u64 * fit.row <= fit.available, "{fit:?}");
    }

    #[test]
    fn a_pass_that_fails_tells_nothing() {
        assert_eq!(that_fits(8, |_| false), None);
    }
}
