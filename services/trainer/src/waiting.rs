//! Jobs that no worker which is there could run: what their owners are told, and when they are given up.
//!
//! The queue keeps such a job and says nothing: it does not know who is there, and one that could run the job may come later. So
//! whoever asks for the job is told what it waits for, its log says so, and it fails only once nobody has come for days.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tailor_domain::JobState;
use tailor_queue::Class;
use tokio::sync::Mutex;

use crate::calibrations::Calibrations;
use crate::error::Result;
use crate::journal::now_ms;
use crate::view::View;

/// How long it is believed who was there a moment ago: many jobs are asked for at a time.
const FRESH: Duration = Duration::from_secs(2);
/// A worker that has just been started measures itself before it says that it is there.
const PATIENCE_MS: u64 = 60_000;
/// What is under way speaks more often than that. A worker that is gone is known to be after as long.
const SILENCE_MS: u64 = 15 * 60_000;

/// No worker is there that could run jobs of this class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Absence {
    pub class: Class,
    /// When the last one was seen; None: nobody remembers one.
    pub seen_at_ms: Option<u64>,
}

impl Absence {
    pub fn words(&self, now_ms: u64) -> String {
        let who = match self.class {
            Class::Cpu => "trainer",
            Class::Gpu => "trainer with a GPU",
        };
        match self.seen_at_ms {
            Some(seen) => format!("no {who} has been there for {}", span(now_ms.saturating_sub(seen))),
            None => format!("no {who} has been there yet"),
        }
    }
}

/// Who was away when it was looked at.
type Known = (Instant, Vec<Absence>);

/// Who is away.
#[derive(Debug, Clone)]
pub struct Absences {
    calibrations: Calibrations,
    last: Arc<Mutex<Option<Known>>>,
}

impl Absences {
    pub fn of(calibrations: Calibrations) -> Self {
        Self { calibrations, last: Arc::default() }
    }

    /// None where a worker is there.
    ///
    /// # Errors
    /// The store is away, and with it what is known of workers.
    pub async fn of_class(&self, class: Class) -> Result<Option<Absence>> {
        let mut last = self.last.lock().await;
        if last.as_ref().is_none_or(|(looked, _)| looked.elapsed() >= FRESH) {
            *last = Some((Instant::now(), self.calibrations.absences(now_ms()).await?));
        }
        let found = last.as_ref().map_or(&[][..], |(_, found)| found.as_slice());
        Ok(found.iter().find(|absence| absence.class == class).copied())
    }
}

/// What a job's log is to be told.
#[derive(Debug, PartialEq, Eq)]
pub enum Word {
    /// Whether a worker is there that could run it.
    Waiting { is_there: bool, message: String },
    /// The worker of the attempt that is under way is gone, like all others.
    Lost(String),
    /// It is failed.
    GivenUp(String),
}

/// What an unfinished job's log is to be told now, if anything; with a `limit_ms` of 0 it waits for ever.
pub fn word(view: &View, absence: Option<Absence>, limit_ms: u64, now_ms: u64) -> Option<Word> {
    let quiet_ms = now_ms.saturating_sub(view.updated_at_ms);
    match (view.state, absence, view.waiting_since_ms) {
        (JobState::Queued, None, Some(_)) => {
            let message = "a trainer that could run the job is there; it waits for its turn".to_owned();
            Some(Word::Waiting { is_there: true, message })
        }
        (JobState::Queued, Some(absence), None) if quiet_ms >= PATIENCE_MS => Some(waits(absence, now_ms)),
        (JobState::Queued, Some(absence), Some(since)) => {
            let waited = now_ms.saturating_sub(since);
            (limit_ms > 0 && waited >= limit_ms).then(|| {
                let (words, waited) = (absence.words(now_ms), span(waited));
                Word::GivenUp(format!(
                    "{words}; the job waited for one for {waited} and is given up (trainer.unclaimed_ms); create it anew once \
                     one is there"
                ))
            })
        }
        (JobState::Leased | JobState::Preparing | JobState::Training | JobState::Evaluating, Some(absence), _)
            if quiet_ms >= SILENCE_MS =>
        {
            let (words, quiet) = (absence.words(now_ms), span(quiet_ms));
            Some(Word::Lost(format!("attempt {} has been silent for {quiet}, and {words}; the job waits", view.fence)))
        }
        // What is being published may be there already: whoever comes next looks.
        (_, _, _) => None,
    }
}

/// That a job waits for a worker which is not there.
pub fn waits(absence: Absence, now_ms: u64) -> Word {
    let message = format!("{}; the job waits for one, or until it is cancelled", absence.words(now_ms));
    Word::Waiting { is_there: false, message }
}

fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;
    const DAY: u64 = 24 * 60 * MINUTE;
    const NOW: u64 = 1_700_000_000_000;
    const GONE: Option<Absence> = Some(Absence { class: Class::Gpu, seen_at_ms: Some(NOW - 3 * 60 * MINUTE) });

    fn view(state: JobState, updated_at_ms: u64, waiting_since_ms: Option<u64>) -> View {
        View { state, updated_at_ms, waiting_since_ms, fence: 2, ..View::default() }
    }

    #[test]
    fn a_job_that_nobody_could_run_is_told_so_once_and_again_when_somebody_comes() {
        let queued = |ago, since| view(JobState::Queued, NOW - ago, since);
        assert_eq!(word(&queued(MINUTE / 2, None), GONE, DAY, NOW), None, "one may be starting");
        let Some(Word::Waiting { is_there: false, message }) = word(&queued(MINUTE, None), GONE, DAY, NOW) else {
            panic!("it is told")
        };
        assert!(message.starts_with("no trainer with a GPU has been there for 3 h;"), "{message}");
        assert_eq!(word(&queued(MINUTE, Some(NOW - MINUTE)), GONE, DAY, NOW), None, "it was told");
        let there = word(&queued(0, Some(NOW - MINUTE)), None, DAY, NOW);
        assert!(matches!(there, Some(Word::Waiting { is_there: true, .. })), "{there:?}");
        assert_eq!(word(&queued(DAY, None), None, DAY, NOW), None, "it waits for its turn, however long");
        let never = Absence { class: Class::Cpu, seen_at_ms: None };
        assert_eq!(never.words(NOW), "no trainer has been there yet");
    }

    #[test]
    fn a_job_is_given_up_once_it_has_waited_too_long_for_somebody_to_come() {
        let waiting = view(JobState::Queued, NOW - DAY, Some(NOW - 2 * DAY));
        let Some(Word::GivenUp(message)) = word(&waiting, GONE, 2 * DAY, NOW) else { panic!("given up") };
        assert!(message.contains("waited for one for 2 days") && message.contains("create it anew"), "{message}");
        assert_eq!(word(&waiting, GONE, 2 * DAY + 1, NOW), None, "not yet");
        assert_eq!(word(&waiting, GONE, 0, NOW), None, "for ever");
    }

    #[test]
    fn an_attempt_whose_worker_is_gone_with_all_others_is_lost_when_it_has_been_silent() {
        for state in JobState::ALL {
            let lost = word(&view(state, NOW - SILENCE_MS, None), GONE, DAY, NOW);
            let is_under_way =
                matches!(state, JobState::Leased | JobState::Preparing | JobState::Training | JobState::Evaluating);
            assert_eq!(matches!(lost, Some(Word::Lost(_))), is_under_way, "{state}: {lost:?}");
            assert!(!matches!(word(&view(state, NOW - SILENCE_MS, None), None, DAY, NOW), Some(Word::Lost(_))));
            let speaks = word(&view(state, NOW - SILENCE_MS + 1, None), GONE, DAY, NOW);
            assert!(!matches!(speaks, Some(Word::Lost(_))), "{state}: {speaks:?}");
        }
    }
}
