//! What training reports while it runs and when it ends.

use std::collections::VecDeque;

use tailor_domain::{StepMetrics, TuningMetrics};

use crate::checkpoint::Checkpoint;

/// Steps whose mean loss decides whether the loss is acceptable.
const WINDOW: usize = 20;

/// Watches a run from outside. Called between steps, on the device's thread.
pub trait Observer {
    fn on_step(&mut self, step: &StepMetrics);
    /// True ends the run after the present step; what was learnt is kept.
    fn should_stop(&mut self) -> bool;
    /// Whether a checkpoint is wanted now; asked once more when the run is stopped. After the last step of a run that was
    /// not stopped one is given unasked.
    fn wants_checkpoint(&mut self) -> bool {
        false
    }
    fn on_checkpoint(&mut self, _: Checkpoint) {}
    /// After a measurement on the tuning rows.
    fn on_tuning(&mut self, _: &TuningMetrics) {}
    /// Something that a person should read.
    fn on_note(&mut self, _: &str) {}
}

/// Watches nothing and never stops a run.
impl Observer for () {
    fn on_step(&mut self, _: &StepMetrics) {}
    fn should_stop(&mut self) -> bool {
        false
    }
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The budget of epochs and steps is used up.
    Finished,
    /// The loss is acceptable.
    TargetLoss,
    /// No measurement has been better for as long as patience reaches.
    NoImprovement,
    /// The budget of time or money is used up.
    OutOfBudget,
    /// The loss ran away; the best state before it is kept.
    Diverged,
    /// The observer asked for it.
    Stopped,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    pub steps: u64,
    /// Tokens of all steps, padding not counted.
    pub tokens: u64,
    /// Mean loss of the last 20 steps.
    pub final_loss: f64,
    pub seconds: f64,
    pub tokens_per_second: f64,
    pub outcome: Outcome,
    /// The process's highest resident memory.
    pub peak_memory_bytes: u64,
    /// Steps of the state that is kept: fewer than `steps` where an earlier one was better.
    pub kept_step: u64,
    /// The measurement of that state, and the last one; none without tuning rows.
    pub best: Option<TuningMetrics>,
    pub last_tuning: Option<TuningMetrics>,
    /// Rows that were put aside for measuring.
    pub tuning_rows: usize,
    /// Sequences in one forward pass at the end.
    pub micro_batch: usize,
    /// Rows left out because they are too long or have no target.
    pub rows_left_out: usize,
}

/// The losses of the last [`WINDOW`] steps.
#[derive(Default)]
pub struct RecentLoss(VecDeque<f64>);

impl RecentLoss {
    pub fn push(&mut self, loss: f64) {
        if self.0.len() == WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(loss);
    }

    /// Oldest first.
    pub fn losses(&self) -> Vec<f64> {
        self.0.iter().copied().collect()
    }

    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len().max(1) as f64
    }

    /// Whether `loss` is above `factor` times a full window's mean; a factor of 0 never calls it so.
    pub fn is_spike(&self, loss: f64, factor: f64) -> bool {
        factor > 0.0 && self.0.len() == WINDOW && loss > factor * self.mean()
    }

    /// Whether a full window's mean is at most `target`; a target of 0 is never reached.
    pub fn reached(&self, target: f64) -> bool {
        target > 0.0 && self.0.len() == WINDOW && self.mean() <= target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lucky_step_is_not_an_acceptable_loss() {
        let mut recent = RecentLoss::default();
        recent.push(0.0);
        assert!(!recent.reached(0.5), "the window is not full");
        (0..WINDOW).for_each(|_| recent.push(1.0));
        recent.push(0.0);
        assert!(!recent.reached(0.5));
        assert!(recent.reached(0.95));
        assert!(!recent.reached(0.0), "0 switches it off");
        assert!(recent.is_spike(3.0, 3.0) && !recent.is_spike(2.0, 3.0) && !recent.is_spike(1e9, 0.0));
    }
}
