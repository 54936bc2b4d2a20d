//! What the engine has done and holds, for handles to read at any time: the base of RetryInfo, and of whoever watches.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How fast old speeds are forgotten.
const MEMORY: Duration = Duration::from_secs(10);
/// Bounds of what callers are told to wait.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);

/// A moment of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Sequences that are being worked on.
    pub running: usize,
    /// Requests that wait, and all the tokens they may come to.
    pub waiting: usize,
    pub waiting_tokens: usize,
    /// Blocks of the cache: all of them, and those that a sequence holds.
    pub kv_blocks: usize,
    pub kv_blocks_held: usize,
    /// Steps made.
    pub steps: u64,
    /// Prompt tokens that were computed, and those that were found in the cache.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub made_tokens: u64,
    /// Tokens that requests reserved and have done with, a second: what a queue of tokens drains by.
    pub drain_rate: f64,
    /// How long the device has been at work since it last came to an end of a step, a load or a score; zero while it is idle.
    pub without_progress: Duration,
}

#[derive(Default)]
pub struct Meter {
    usage: Mutex<Usage>,
    /// When the present piece of work began; None while there is none.
    at_work_since: Mutex<Option<Instant>>,
}

impl Meter {
    pub fn usage(&self) -> Usage {
        let since = *self.at_work_since.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Usage { without_progress: since.map_or(Duration::ZERO, |since| since.elapsed()), ..*self.lock() }
    }

    /// Something is about to be asked of the device. Its wait counts as work, so that a thread that never takes it is missed.
    pub fn asked(&self) {
        self.at_work_since.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert_with(Instant::now);
    }

    /// The device begins a piece of work now, and has done with the one before it.
    pub fn at_work(&self) {
        self.set_at_work(Some(Instant::now()));
    }

    /// The device has nothing to do.
    pub fn idle(&self) {
        self.set_at_work(None);
    }

    fn set_at_work(&self, since: Option<Instant>) {
        *self.at_work_since.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = since;
    }

    pub fn update(&self, change: impl FnOnce(&mut Usage)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// When there will be room for what waits now, by the speed of late.
    pub fn retry_after(&self, queued_tokens: usize) -> Duration {
        let rate = self.lock().drain_rate;
        if rate <= 0.0 {
            return Duration::from_secs(1);
        }
        let seconds = (queued_tokens as f64 / rate).min(LONGEST.as_secs_f64());
        Duration::from_secs_f64(seconds).clamp(SHORTEST, LONGEST)
    }
}

/// Tokens a second, forgetting the past exponentially; only times of work count.
pub struct Rate {
    tokens: f64,
    seconds: f64,
    since: Option<Instant>,
}

impl Rate {
    pub fn new() -> Self {
        Self { tokens: 0.0, seconds: 0.0, since: None }
    }

    /// Nothing is being done now.
    pub fn pause(&mut self) {
        self.since = None;
    }

    /// Takes in what was done up to `now`; gives the rate.
    pub fn done(&mut self, tokens: usize, now: Instant) -> f64 {
        let passed = self.since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64());
        self.since = Some(now);
        let kept = (-passed / MEMORY.as_secs_f64()).exp();
        self.tokens = self.tokens * kept + tokens as f64;
        self.seconds = self.seconds * kept + passed;
        if self.seconds > 0.0 { self.tokens / self.seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_the_work_of_late_and_idle_times_do_not_count() {
        let mut rate = Rate::new();
        let begin = Instant::now();
        let at = |seconds: f64| begin + Duration::from_secs_f64(seconds);
        let mut found = 0.0;
        for step in 0..100 {
            found = rate.done(10, at(f64::from(step) * 0.1));
        }
        assert!((90.0..115.0).contains(&found), "{found} for 100 a second");
        rate.pause();
        let after = rate.done(10, at(1000.0));
        assert!((90.0..130.0).contains(&after), "{after} after an idle time");
        for step in 0..1000 {
            found = rate.done(1, at(1000.0 + f64::from(step) * 0.1));
        }
        assert!((9.0..12.0).contains(&found), "{found} for 10 a second");
    }

    #[test]
    fn only_work_without_an_end_is_without_progress() {
        let meter = Meter::default();
        let pause = || std::thread::sleep(Duration::from_millis(5));
        pause();
        assert_eq!(meter.usage().without_progress, Duration::ZERO, "nothing was begun");
        meter.at_work();
        pause();
        assert!(meter.usage().without_progress >= Duration::from_millis(5));
        let before = meter.usage().without_progress;
        meter.at_work();
        assert!(meter.usage().without_progress < before, "a step has come to its end");
        meter.idle();
        pause();
        assert_eq!(meter.usage().without_progress, Duration::ZERO);
        meter.asked();
        pause();
        meter.asked();
        assert!(meter.usage().without_progress >= Duration::from_millis(5), "from the first that was asked");
    }

    #[test]
    fn callers_are_told_to_wait_for_what_is_before_them() {
        let meter = Meter::default();
        assert_eq!(meter.retry_after(100), Duration::from_secs(1), "nothing is known yet");
        meter.update(|usage| usage.drain_rate = 50.0);
        assert_eq!(meter.retry_after(100), Duration::from_secs(2));
        assert_eq!(meter.retry_after(1), SHORTEST);
        assert_eq!(meter.retry_after(1_000_000), LONGEST);
    }
}
