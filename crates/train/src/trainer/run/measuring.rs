//! Measurements on the tuning rows: in passes no larger than a step's, a few rows a turn, so that others have theirs in
//! between and whoever stops the run need not wait for all rows.
//!
//! A state that is saved while it is being measured is measured anew by whoever goes on from it.

use std::ops::Deref;

use tailor_domain::{ErrorCode, TuningMetrics};
use tailor_models::Base;
use tailor_torch::guarded;

use super::Run;
use crate::error::Error;
use crate::loss::Measured;
use crate::summary::Observer;

/// Measurements in a run that does not say how often it measures.
const MEASUREMENTS: u64 = 10;
/// Rows that a rank measures in one turn. The same on all ranks, which may pass over unlike numbers of rows at once.
const TURN_ROWS: usize = 16;

/// A measurement under way.
pub(super) struct Measuring {
    turns: usize,
    /// Most rows in one pass.
    micro: usize,
    sums: Measured,
}

impl<B: Deref<Target = Base>> Run<'_, B> {
    /// Whether the state after this step is to be measured and was not yet.
    pub(super) fn measurement_is_due(&self) -> bool {
        let every = match self.recipe.evaluate.every_steps {
            0 => self.schedule.total_steps.div_ceil(MEASUREMENTS),
            steps => steps,
        };
        let step = self.state.step;
        let is_its_turn = step == self.schedule.total_steps || step.is_multiple_of(every.max(1));
        let is_measured = self.state.last_tuning.is_some_and(|last| last.step == step);
        step > 0 && is_its_turn && !is_measured && !self.rows.tuning().is_empty()
    }

    /// Some more of a measurement that is due, and what it showed once it is whole.
    pub(super) fn measure_if_due(&mut self, observer: &mut dyn Observer) -> Result<(), Error> {
        if self.measurement_is_due()
            && let Some(measured) = self.measure_some(observer)?
        {
            observer.on_tuning(&measured);
        }
        Ok(())
    }

    /// Some more of the tuning rows; once those are all, loss and accuracy, and whether they are the best so far.
    fn measure_some(&mut self, observer: &mut dyn Observer) -> Result<Option<TuningMetrics>, Error> {
        let place = format!("measuring after step {}", self.state.step);
        let fresh = || Measuring { turns: 0, micro: self.state.micro_batch as usize, sums: Measured::default() };
        let mut measuring = self.measuring.take().unwrap_or_else(fresh);
        let done = measuring.turns * self.ranks.world() as usize;
        let parts = self.rows.tuning().chunks(TURN_ROWS).skip(done);
        let left = parts.len();
        if let Some(rows) = self.ranks.deal(parts).next() {
            let objective = self.objective();
            let pass = |rows: &[u32]| {
                let loaded = self.rows.examples().load(rows.chunks(1))?;
                guarded(|| objective.measure(&loaded)).map_err(Error::at(place.as_str()))
            };
            let before = measuring.micro;
            measuring.sums += in_passes(rows, &mut measuring.micro, pass)?;
            if measuring.micro < before {
                observer.on_note(&format!(
                    "{place}: no memory for {before} rows at once; measured with {}",
                    measuring.micro
                ));
            }
        }
        measuring.turns += 1;
        if left > self.ranks.world() as usize {
            self.measuring = Some(measuring);
            return Ok(None);
        }
        self.judge(measuring.sums, &place).map(Some)
    }

    fn judge(&mut self, sums: Measured, place: &str) -> Result<TuningMetrics, Error> {
        let own = [sums.loss, sums.correct as f64, sums.labels as f64];
        let sums = self.ranks.sum(own, place)?;
        let bound = self.state.best.map_or(f64::INFINITY, |best| best.loss * (1.0 - self.recipe.stop.min_improvement));
        let step = self.state.step;
        let measured = figures(step, sums, bound).map_err(|loss| Error::NotFinite {
            step,
            what: "the loss on the tuning rows",
            loss,
            grad_norm: f64::NAN,
            rows: self.rows.name_tuning(),
        })?;
        if measured.best {
            let keeping = format!("keeping the state after step {}", measured.step);
            self.best = self.optimizer.flat_values().map_err(|error| Error::at(keeping)(error.into()))?;
            self.state.best = Some(measured);
            self.state.without_improvement = 0;
        } else {
            self.state.without_improvement += 1;
        }
        self.state.last_tuning = Some(measured);
        Ok(measured)
    }
}

/// What summed losses, right labels and labels come to; a loss is the best below `bound`. Err: the loss, which is no number, and
/// could be neither compared nor told.
fn figures(step: u64, [loss, correct, labels]: [f64; 3], bound: f64) -> Result<TuningMetrics, f64> {
    let (tokens, labels) = (labels as u64, labels.max(1.0));
    let (loss, token_accuracy) = (loss / labels, correct / labels);
    if !loss.is_finite() {
        return Err(loss);
    }
    Ok(TuningMetrics { step, loss, token_accuracy, tokens, best: loss < bound })
}

/// What passes over at most `micro` rows sum up to. A pass without memory is made again over half as many rows, and so are
/// those after it.
fn in_passes(
    rows: &[u32],
    micro: &mut usize,
    mut pass: impl FnMut(&[u32]) -> Result<Measured, Error>,
) -> Result<Measured, Error> {
    let (mut sums, mut left) = (Measured::default(), rows);
    while !left.is_empty() {
        let (some, rest) = left.split_at((*micro).clamp(1, left.len()));
        match pass(some) {
            Ok(measured) => {
                sums += measured;
                left = rest;
            }
            Err(error) if error.code() == ErrorCode::ResourceExhausted && some.len() > 1 => *micro = some.len() / 2,
            Err(error) => return Err(error),
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes over 16 rows on a device that holds so many at once.
    fn passes(micro: usize, room: usize) -> (Result<Measured, Error>, Vec<usize>, usize) {
        let rows: Vec<u32> = (0..16).collect();
        let (mut sizes, mut micro) = (Vec::new(), micro);
        let outcome = in_passes(&rows, &mut micro, |rows| {
            sizes.push(rows.len());
            if rows.len() > room {
                let full = tailor_torch::Error::Torch("CUDA out of memory".into());
                return Err(Error::at("measuring")(full.into()));
            }
            Ok(Measured { loss: rows.iter().map(|row| f64::from(*row)).sum(), correct: 1, labels: rows.len() as u64 })
        });
        (outcome, sizes, micro)
    }

    #[test]
    fn a_loss_that_is_no_number_is_no_measurement() {
        let measured = figures(3, [6.0, 2.0, 4.0], 1.6).expect("a number");
        assert_eq!((measured.loss, measured.token_accuracy, measured.tokens, measured.best), (1.5, 0.5, 4, true));
        assert!(!figures(3, [6.0, 2.0, 4.0], 1.5).expect("a number").best);
        for loss in [f64::NAN, f64::INFINITY] {
            assert!(figures(3, [loss, 2.0, 4.0], f64::INFINITY).is_err_and(|loss| !loss.is_finite()));
        }
        let error = Error::NotFinite { step: 3, what: "", loss: f64::NAN, grad_norm: f64::NAN, rows: String::new() };
        assert!(error.is_divergence(), "the run ends with the best state, as after a step like that");
    }

    #[test]
    fn no_pass_is_larger_than_a_steps_and_every_row_counts_once() {
        for micro in [1, 3, 16, 4096] {
            let (sums, sizes, _) = passes(micro, 16);
            let sums = sums.expect("room for all");
            assert_eq!((sums.loss, sums.labels), (120.0, 16));
            assert!(sizes.iter().all(|size| *size <= micro) && sizes.len() == 16usize.div_ceil(micro), "{sizes:?}");
        }
    }

    #[test]
    fn a_pass_without_memory_is_halved_and_counts_once() {
        let (sums, sizes, micro) = passes(16, 5);
        let sums = sums.expect("four rows fit");
        assert_eq!((sums.loss, sums.labels, micro), (120.0, 16, 4));
        assert_eq!(sizes, [16, 8, 4, 4, 4, 4]);
        let (alone, sizes, _) = passes(2, 0);
        assert_eq!(alone.expect_err("not even one").code(), ErrorCode::ResourceExhausted);
        assert_eq!(sizes, [2, 1]);
    }
}
