//! What a job's log says of its training, whatever became of its attempts.

use std::collections::BTreeMap;

use tailor_pb::training as pb;

use crate::connect::Endpoints;

/// Steps and measurements by step. What an attempt does over again takes the place of what was there.
#[derive(Debug, Default)]
pub struct History {
    pub steps: BTreeMap<u64, pb::Step>,
    pub tuning: BTreeMap<u64, pb::Tuning>,
}

impl History {
    /// Reads the log as far as it goes now.
    pub async fn read(endpoints: &Endpoints, id: &str) -> anyhow::Result<Self> {
        let request = pb::WatchJobRequest { id: id.to_owned(), from_sequence: 1, no_follow: true };
        let mut stream = endpoints.trainer()?.watch_job(request).await?.into_inner();
        let mut history = Self::default();
        while let Some(event) = stream.message().await? {
            history.add(&event);
        }
        Ok(history)
    }

    /// Takes an event in; returns the step at which the run was taken up again, if it was.
    pub fn add(&mut self, event: &pb::JobEvent) -> Option<u64> {
        let mut again = None;
        for step in &event.steps {
            if self.steps.last_key_value().is_some_and(|(last, _)| step.step <= *last) {
                self.steps.split_off(&step.step);
                self.tuning.split_off(&step.step);
                again = again.or(Some(step.step));
            }
            self.steps.insert(step.step, *step);
        }
        if let Some(tuning) = &event.tuning {
            self.tuning.insert(tuning.step, *tuning);
        }
        again
    }

    /// The measurement with the lowest loss.
    pub fn best(&self) -> Option<&pb::Tuning> {
        self.tuning.values().filter(|tuning| tuning.loss.is_finite()).min_by(|a, b| a.loss.total_cmp(&b.loss))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(steps: &[(u64, f64)], tuning: Option<(u64, f64)>) -> pb::JobEvent {
        let step = |&(step, loss): &(u64, f64)| pb::Step { step, loss, ..Default::default() };
        let tuning = tuning.map(|(step, loss)| pb::Tuning { step, loss, ..Default::default() });
        pb::JobEvent { steps: steps.iter().map(step).collect(), tuning, ..Default::default() }
    }

    #[test]
    fn what_is_trained_again_replaces_what_an_attempt_before_saw() {
        let mut history = History::default();
        assert_eq!(history.add(&event(&[(1, 5.0), (2, 4.0)], Some((2, 4.5)))), None);
        assert_eq!(history.add(&event(&[(3, 3.0), (4, 2.0)], Some((4, 1.0)))), None);
        assert_eq!(history.add(&event(&[(3, 3.5)], None)), Some(3));
        let losses: Vec<_> = history.steps.values().map(|step| (step.step, step.loss)).collect();
        assert_eq!(losses, [(1, 5.0), (2, 4.0), (3, 3.5)]);
        assert_eq!(history.best().map(|tuning| tuning.step), Some(2));
    }
}
