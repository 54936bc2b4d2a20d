//! What both sides of a rollout did, over their last requests, and when that is too bad to go on.

use std::collections::VecDeque;
use std::time::Duration;

use tailor_domain::rollout::Limits;

use super::Side;

/// Requests of a side that are remembered.
const WINDOW: usize = 1000;

/// How one request went: the time for the whole answer, or `None` where it failed.
type Outcome = Option<Duration>;

#[derive(Debug, Default)]
pub struct SideFigures {
    requests: u64,
    errors: u64,
    last: VecDeque<Outcome>,
    reports: u64,
    scores: VecDeque<f64>,
}

#[derive(Debug, Default)]
pub struct Figures {
    stable: SideFigures,
    canary: SideFigures,
    compared: u64,
    same: u64,
    distances: VecDeque<f64>,
    shadow_errors: u64,
    skipped: u64,
}

/// The figures as they are shown.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    pub stable: SeenSide,
    pub canary: SeenSide,
    pub compared: u64,
    pub same: u64,
    pub mean_distance: f64,
    pub shadow_errors: u64,
    pub skipped: u64,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct SeenSide {
    pub requests: u64,
    pub errors: u64,
    pub p50: Duration,
    pub p95: Duration,
    pub reports: u64,
    pub mean_quality: f64,
}

impl SideFigures {
    pub fn answered(&mut self, after: Duration) {
        self.requests += 1;
        push(&mut self.last, Some(after));
    }

    pub fn failed(&mut self) {
        self.requests += 1;
        self.errors += 1;
        push(&mut self.last, None);
    }

    pub fn quality(&mut self, score: f64) {
        self.reports += 1;
        push(&mut self.scores, score);
    }

    fn recent_errors(&self) -> usize {
        self.last.iter().filter(|outcome| outcome.is_none()).count()
    }

    fn percentile(&self, share: f64) -> Option<Duration> {
        let mut times: Vec<Duration> = self.last.iter().flatten().copied().collect();
        if times.is_empty() {
            return None;
        }
        times.sort_unstable();
        // Nearest rank.
        let rank = (share * times.len() as f64).ceil() as usize;
        times.get(rank.clamp(1, times.len()) - 1).copied()
    }

    fn seen(&self) -> SeenSide {
        SeenSide {
            requests: self.requests,
            errors: self.errors,
            p50: self.percentile(0.5).unwrap_or_default(),
            p95: self.percentile(0.95).unwrap_or_default(),
            reports: self.reports,
            mean_quality: mean(&self.scores).unwrap_or_default(),
        }
    }
}

impl Figures {
    pub fn side(&mut self, side: Side) -> &mut SideFigures {
        match side {
            Side::Stable => &mut self.stable,
            Side::Canary => &mut self.canary,
        }
    }

    pub fn compared(&mut self, distance: f64) {
        self.compared += 1;
        self.same += u64::from(distance == 0.0);
        push(&mut self.distances, distance);
    }

    pub fn shadow_failed(&mut self) {
        self.shadow_errors += 1;
    }

    pub fn skipped(&mut self) {
        self.skipped += 1;
    }

    pub fn seen(&self) -> Seen {
        Seen {
            stable: self.stable.seen(),
            canary: self.canary.seen(),
            compared: self.compared,
            same: self.same,
            mean_distance: mean(&self.distances).unwrap_or_default(),
            shadow_errors: self.shadow_errors,
            skipped: self.skipped,
        }
    }

    /// Why the rollout must end, if it must.
    pub fn judge(&self, limits: &Limits) -> Option<String> {
        let enough = limits.min_requests as usize;
        let seen = self.canary.last.len();
        let errors = self.canary.recent_errors();
        // Errors that would be too many even if all requests up to the least number went well need not be waited for.
        let judged_over = seen.max(enough);
        if errors as f64 > limits.max_error_rate * judged_over as f64 {
            let limit = limits.max_error_rate;
            return Some(format!("{errors} of its last {seen} requests failed; the limit is {limit} of {judged_over}"));
        }
        if limits.max_latency_ratio > 0.0
            && seen >= enough
            && self.stable.last.len() >= enough
            && let (Some(canary), Some(stable)) = (self.canary.percentile(0.95), self.stable.percentile(0.95))
        {
            let ratio = canary.as_secs_f64() / stable.as_secs_f64().max(1e-9);
            if ratio > limits.max_latency_ratio {
                let (canary, stable, limit) = (ms(canary), ms(stable), limits.max_latency_ratio);
                return Some(format!(
                    "95 % of its answers take up to {canary:.0} ms, {ratio:.1} times the {stable:.0} ms of the stable \
                     version; the limit is {limit} times"
                ));
            }
        }
        if self.canary.scores.len() >= enough
            && self.stable.scores.len() >= enough
            && let (Some(canary), Some(stable)) = (mean(&self.canary.scores), mean(&self.stable.scores))
            && stable - canary > limits.max_quality_drop
        {
            let limit = limits.max_quality_drop;
            return Some(format!(
                "its mean score is {canary:.3}, the stable version's {stable:.3}; the limit is {limit} below"
            ));
        }
        if let Some(limit) = limits.max_shadow_distance
            && self.distances.len() >= enough
            && let Some(distance) = mean(&self.distances)
            && distance > limit
        {
            let compared = self.distances.len();
            return Some(format!("its last {compared} shadow answers are {distance:.3} apart; the limit is {limit}"));
        }
        None
    }
}

fn push<T>(window: &mut VecDeque<T>, value: T) {
    if window.len() == WINDOW {
        window.pop_front();
    }
    window.push_back(value);
}

fn mean(values: &VecDeque<f64>) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        min_requests: 10,
        max_error_rate: 0.1,
        max_latency_ratio: 2.0,
        max_quality_drop: 0.05,
        max_shadow_distance: Some(0.3),
    };

    fn figures(canary: impl FnOnce(&mut SideFigures), stable: impl FnOnce(&mut SideFigures)) -> Figures {
        let mut figures = Figures::default();
        canary(&mut figures.canary);
        stable(&mut figures.stable);
        figures
    }

    fn answered(side: &mut SideFigures, count: usize, ms: u64) {
        (0..count).for_each(|_| side.answered(Duration::from_millis(ms)));
    }

    #[test]
    fn errors_are_judged_as_soon_as_nothing_can_make_up_for_them() {
        let mut figures = Figures::default();
        figures.canary.failed();
        assert_eq!(figures.judge(&LIMITS), None, "one of ten may fail");
        figures.canary.failed();
        let said = figures.judge(&LIMITS).expect("two of ten may not");
        assert_eq!(said, "2 of its last 2 requests failed; the limit is 0.1 of 10");
        answered(&mut figures.canary, 18, 1);
        assert_eq!(figures.judge(&LIMITS), None, "two of twenty may");
    }

    #[test]
    fn latency_is_compared_once_both_sides_have_had_enough() {
        let both = |canary, stable| {
            figures(|side| answered(side, canary, 50), |side| answered(side, stable, 20)).judge(&LIMITS)
        };
        assert_eq!(both(9, 10), None);
        assert_eq!(both(10, 9), None);
        assert!(both(10, 10).expect("too slow").contains("50 ms, 2.5 times the 20 ms"));
        let slow = figures(|side| answered(side, 10, 50), |side| answered(side, 10, 20));
        assert_eq!(slow.judge(&Limits { max_latency_ratio: 0.0, ..LIMITS }), None, "not looked at");
        let one_slow = figures(
            |side| {
                answered(side, 39, 20);
                answered(side, 1, 5000);
            },
            |side| answered(side, 40, 20),
        );
        assert_eq!(one_slow.judge(&LIMITS), None, "one of forty is beyond the 95th percentile");
    }

    #[test]
    fn quality_and_shadow_answers_have_limits_of_their_own() {
        let scored = |canary: f64, stable: f64| {
            let give = |side: &mut SideFigures, score: f64| (0..10).for_each(|_| side.quality(score));
            figures(|side| give(side, canary), |side| give(side, stable)).judge(&LIMITS)
        };
        assert_eq!(scored(0.86, 0.9), None);
        assert_eq!(scored(0.9, 0.2), None, "better is never a drop");
        assert!(scored(0.8, 0.9).expect("a drop").contains("mean score is 0.800"));
        let mut shadowed = Figures::default();
        (0..9).for_each(|_| shadowed.compared(0.9));
        assert_eq!(shadowed.judge(&LIMITS), None);
        shadowed.compared(0.0);
        assert!(shadowed.judge(&LIMITS).expect("far apart").contains("0.810 apart"));
        let seen = shadowed.seen();
        assert_eq!((seen.compared, seen.same), (10, 1));
    }

    #[test]
    fn old_requests_are_forgotten() {
        let mut figures = Figures::default();
        (0..5).for_each(|_| figures.canary.failed());
        answered(&mut figures.canary, WINDOW, 1);
        assert_eq!(figures.canary.recent_errors(), 0);
        let seen = figures.seen().canary;
        assert_eq!((seen.requests, seen.errors), (WINDOW as u64 + 5, 5), "but counted");
    }
}
