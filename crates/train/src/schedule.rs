//! How many steps there are, and the learning rate of each: linear warm-up, then down a cosine or a line, or on as it is.

use std::f64::consts::PI;

use tailor_domain::TrainSpec;
use tailor_domain::spec::Schedule as Shape;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    pub total_steps: u64,
    warmup_steps: u64,
    peak: f64,
    final_ratio: f64,
    shape: Shape,
}

impl Schedule {
    /// Steps are counted from the epochs and bounded by `max_steps` and by how many `max_train_tokens` are likely to
    /// make; there is always at least one.
    pub fn new(spec: &TrainSpec, steps_per_epoch: u64, tokens_per_epoch: u64) -> Self {
        let by_epochs = (spec.epochs * steps_per_epoch as f64).ceil() as u64;
        let tokens_per_step = tokens_per_epoch as f64 / steps_per_epoch.max(1) as f64;
        let by_tokens = match spec.max_train_tokens {
            0 => u64::MAX,
            tokens => (tokens as f64 / tokens_per_step.max(1.0)).ceil() as u64,
        };
        let by_steps = if spec.max_steps == 0 { u64::MAX } else { spec.max_steps };
        let total_steps = by_epochs.min(by_steps).min(by_tokens).max(1);
        let warmup_steps = (spec.warmup_ratio * total_steps as f64).ceil() as u64;
        let (peak, final_ratio, shape) = (spec.learning_rate, spec.final_ratio, spec.schedule);
        Self { total_steps, warmup_steps, peak, final_ratio, shape }
    }

    /// The learning rate of `step`, counted from 1.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step <= self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let decay_steps = (self.total_steps - self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / decay_steps as f64).min(1.0);
        let left = match self.shape {
            Shape::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
            Shape::Linear => 1.0 - progress,
            Shape::Constant => return self.peak,
        };
        self.peak * (self.final_ratio + (1.0 - self.final_ratio) * left)
    }

    /// Steps that are done before a stage of gradual unfreezing begins.
    pub fn steps_before(&self, share: f64) -> u64 {
        (share * self.total_steps as f64).floor() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> TrainSpec {
        TrainSpec { learning_rate: 1.0, warmup_ratio: 0.1, epochs: 2.0, ..Default::default() }
    }

    fn schedule(spec: TrainSpec) -> Schedule {
        Schedule::new(&spec, 50, 5000)
    }

    #[test]
    fn the_rate_climbs_in_a_line_and_falls_along_a_cosine_to_a_tenth() {
        let schedule = schedule(spec());
        assert_eq!(schedule.total_steps, 100);
        assert!((schedule.learning_rate(1) - 0.1).abs() < 1e-12);
        assert!((schedule.learning_rate(10) - 1.0).abs() < 1e-12);
        assert!((schedule.learning_rate(55) - 0.55).abs() < 1e-12, "half way down");
        assert!((schedule.learning_rate(100) - 0.1).abs() < 1e-12);
        assert!((11..100).all(|step| schedule.learning_rate(step + 1) < schedule.learning_rate(step)));
    }

    #[test]
    fn a_line_falls_evenly_and_a_constant_stays() {
        let line = schedule(TrainSpec { schedule: Shape::Linear, final_ratio: 0.0, ..spec() });
        assert!((line.learning_rate(55) - 0.5).abs() < 1e-12);
        assert!((line.learning_rate(100)).abs() < 1e-12);
        let constant = schedule(TrainSpec { schedule: Shape::Constant, ..spec() });
        assert!((constant.learning_rate(5) - 0.5).abs() < 1e-12, "it warms up too");
        assert!([11, 50, 100].iter().all(|step| constant.learning_rate(*step) == 1.0));
    }

    #[test]
    fn steps_and_tokens_bound_the_epochs_and_there_is_at_least_one_step() {
        assert_eq!(schedule(TrainSpec { max_steps: 7, ..spec() }).total_steps, 7);
        assert_eq!(schedule(TrainSpec { max_train_tokens: 1050, ..spec() }).total_steps, 11, "100 tokens a step");
        assert_eq!(schedule(TrainSpec { epochs: 0.001, ..spec() }).total_steps, 1);
        assert_eq!(Schedule::new(&TrainSpec { epochs: 0.5, ..spec() }, 3, 30).total_steps, 2);
    }

    #[test]
    fn without_warm_up_the_first_step_is_near_the_peak() {
        assert!(schedule(TrainSpec { warmup_ratio: 0.0, ..spec() }).learning_rate(1) > 0.99);
    }
}
