//! A job as its readers see it: the fold of its log, kept up to date entry by entry.

use std::collections::BTreeMap;

use tailor_domain::{JobEvent, JobState, LogEntry, LogKind, StepMetrics, TuningMetrics};

#[derive(Debug, Clone)]
pub struct View {
    pub state: JobState,
    /// Number of the last entry that was read.
    pub seq: u64,
    /// The newest attempt that spoke; what older ones say later is not believed.
    pub fence: u64,
    pub updated_at_ms: u64,
    /// The attempt that was under way when the job was last paused.
    pub paused_fence: u64,
    /// Since when its log says that no worker is there which could run it.
    pub waiting_since_ms: Option<u64>,
    pub last_step: Option<StepMetrics>,
    pub last_tuning: Option<TuningMetrics>,
    pub metrics: BTreeMap<String, f64>,
    pub error: Option<String>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            state: JobState::Queued,
            seq: 0,
            fence: 0,
            updated_at_ms: 0,
            paused_fence: 0,
            waiting_since_ms: None,
            last_step: None,
            last_tuning: None,
            metrics: BTreeMap::new(),
            error: None,
        }
    }
}

impl View {
    /// Takes the next entry in.
    pub fn apply(&mut self, entry: &LogEntry) {
        self.seq = entry.seq;
        let from_older_attempt = entry.fence != 0 && entry.fence < self.fence;
        if from_older_attempt || self.state.is_final() {
            return;
        }
        self.updated_at_ms = entry.at_ms;
        match &entry.kind {
            LogKind::State { event } => {
                let Ok(next) = self.state.next(*event) else { return };
                self.state = next;
                self.fence = self.fence.max(entry.fence);
                self.waiting_since_ms = None;
                match event {
                    JobEvent::Fail | JobEvent::Unclaimed => self.error = Some(entry.message.clone()),
                    JobEvent::Pause => self.paused_fence = self.fence,
                    JobEvent::Leased
                    | JobEvent::Prepare
                    | JobEvent::Train
                    | JobEvent::Resume
                    | JobEvent::Evaluate
                    | JobEvent::Publish
                    | JobEvent::Succeed
                    | JobEvent::Cancel
                    | JobEvent::LeaseLost => {}
                }
            }
            LogKind::Progress { steps } => self.last_step = steps.last().copied().or(self.last_step),
            LogKind::Tuning { measured } => self.last_tuning = Some(*measured),
            LogKind::Metrics { metrics } => self.metrics.extend(metrics.clone()),
            LogKind::Waiting { is_there: true } => self.waiting_since_ms = None,
            LogKind::Waiting { is_there: false } => {
                self.waiting_since_ms = self.waiting_since_ms.or(Some(entry.at_ms));
            }
            LogKind::Evaluation { .. } | LogKind::Note => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64, fence: u64, kind: LogKind, message: &str) -> LogEntry {
        LogEntry { seq, at_ms: seq, fence, message: message.into(), kind }
    }

    fn event(seq: u64, fence: u64, event: JobEvent) -> LogEntry {
        entry(seq, fence, LogKind::State { event }, "because")
    }

    #[test]
    fn a_view_agrees_with_the_domains_fold() {
        use JobEvent as E;
        let log: Vec<_> =
            [(1, E::Leased), (1, E::Prepare), (2, E::Leased), (1, E::Fail), (2, E::Prepare), (2, E::Train)]
                .into_iter()
                .zip(1..)
                .map(|((fence, kind), seq)| event(seq, fence, kind))
                .collect();
        let mut view = View::default();
        log.iter().for_each(|entry| view.apply(entry));
        assert_eq!(view.state, tailor_domain::job::fold(&log));
        assert_eq!(view.error, None, "the zombie's failure is not the job's");
    }

    #[test]
    fn a_job_waits_for_a_worker_from_its_logs_first_word_of_it_until_one_comes() {
        let mut view = View::default();
        let waiting = |seq, is_there| entry(seq, 0, LogKind::Waiting { is_there }, "");
        [waiting(1, false), waiting(2, false)].iter().for_each(|entry| view.apply(entry));
        assert_eq!((view.waiting_since_ms, view.state), (Some(1), JobState::Queued), "two may say it at once");
        view.apply(&waiting(3, true));
        assert_eq!(view.waiting_since_ms, None);
        view.apply(&waiting(4, false));
        let mut leased = view.clone();
        leased.apply(&event(5, 1, JobEvent::Leased));
        leased.apply(&event(6, 0, JobEvent::Unclaimed));
        assert_eq!((leased.waiting_since_ms, leased.state), (None, JobState::Leased), "the worker was faster");
        view.apply(&event(5, 0, JobEvent::Unclaimed));
        assert_eq!((view.state, view.error.as_deref()), (JobState::Failed, Some("because")));
    }

    #[test]
    fn nothing_changes_a_finished_job() {
        let mut view = View::default();
        view.apply(&event(1, 0, JobEvent::Cancel));
        let metrics = BTreeMap::from([("exact_match".to_owned(), 1.0)]);
        view.apply(&entry(2, 1, LogKind::Metrics { metrics }, ""));
        assert_eq!(view.state, JobState::Cancelled);
        assert!(view.metrics.is_empty());
        assert_eq!(view.seq, 2, "the entry was read all the same");
    }
}
