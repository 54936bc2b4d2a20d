//! How many steps there are, and the learning rate of each: linear warm-up, then a cosine down to a tenth.

use std::f64::consts::PI;

use tailor_domain::TrainSpec;

/// What is left of the learning rate at the last step.
const FINAL_SHARE: f64 = 0.1;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    pub total_steps: u64,
    warmup_steps: u64,
    peak: f64,
}

impl Schedule {
    /// Steps are counted from the epochs and bounded by `max_steps`; there is always at least one.
    pub fn new(spec: &TrainSpec, steps_per_epoch: u64) -> Self {
        let by_epochs = (spec.epochs * steps_per_epoch as f64).ceil() as u64;
        let bounded = if spec.max_steps == 0 { by_epochs } else { by_epochs.min(spec.max_steps) };
        let total_steps = bounded.max(1);
        let warmup_steps = (spec.warmup_ratio * total_steps as f64).ceil() as u64;
        Self { total_steps, warmup_steps, peak: spec.learning_rate }
    }

    /// The learning rate of `step`, counted from 1.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step <= self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let decay_steps = (self.total_steps - self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / decay_steps as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (PI * progress).cos());
        self.peak * (FINAL_SHARE + (1.0 - FINAL_SHARE) * cosine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> TrainSpec {
        TrainSpec { learning_rate: 1.0, warmup_ratio: 0.1, epochs: 2.0, ..Default::default() }
    }

    #[test]
    fn the_rate_climbs_in_a_line_and_falls_along_a_cosine_to_a_tenth() {
        let schedule = Schedule::new(&spec(), 50);
        assert_eq!(schedule.total_steps, 100);
        assert!((schedule.learning_rate(1) - 0.1).abs() < 1e-12);
        assert!((schedule.learning_rate(10) - 1.0).abs() < 1e-12);
        assert!((schedule.learning_rate(55) - 0.55).abs() < 1e-12, "half way down");
        assert!((schedule.learning_rate(100) - 0.1).abs() < 1e-12);
        assert!((11..100).all(|step| schedule.learning_rate(step + 1) < schedule.learning_rate(step)));
    }

    #[test]
    fn max_steps_bounds_the_epochs_and_a_fraction_of_an_epoch_is_at_least_one_step() {
        assert_eq!(Schedule::new(&TrainSpec { max_steps: 7, ..spec() }, 50).total_steps, 7);
        assert_eq!(Schedule::new(&TrainSpec { epochs: 0.001, ..spec() }, 3).total_steps, 1);
        assert_eq!(Schedule::new(&TrainSpec { epochs: 0.5, ..spec() }, 3).total_steps, 2);
    }

    #[test]
    fn without_warm_up_the_first_step_is_near_the_peak() {
        let schedule = Schedule::new(&TrainSpec { warmup_ratio: 0.0, ..spec() }, 50);
        assert!(schedule.learning_rate(1) > 0.99);
    }
}
