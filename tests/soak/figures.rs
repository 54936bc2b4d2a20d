//! What came of many requests.

use std::time::Duration;

/// What came of one.
pub enum Asked {
    Answered {
        first: Duration,
        whole: Duration,
    },
    /// Its reader went away.
    Dropped {
        first: Duration,
    },
    Refused,
    Failed(String),
}

impl Asked {
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused)
    }
}

#[derive(Default)]
pub struct Figures {
    /// How long it was asked for.
    pub time: Duration,
    pub answered: usize,
    pub dropped: usize,
    pub refused: usize,
    pub failed: Vec<String>,
    first_ms: Vec<f64>,
    whole_ms: Vec<f64>,
}

impl Figures {
    pub fn take(&mut self, asked: Asked) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        match asked {
            Asked::Answered { first, whole } => {
                self.answered += 1;
                self.first_ms.push(ms(first));
                self.whole_ms.push(ms(whole));
            }
            Asked::Dropped { first } => {
                self.dropped += 1;
                self.first_ms.push(ms(first));
            }
            Asked::Refused => self.refused += 1,
            Asked::Failed(problem) => self.failed.push(problem),
        }
    }

    pub fn add(&mut self, other: Self) {
        self.time += other.time;
        self.answered += other.answered;
        self.dropped += other.dropped;
        self.refused += other.refused;
        self.failed.extend(other.failed);
        self.first_ms.extend(other.first_ms);
        self.whole_ms.extend(other.whole_ms);
    }

    pub fn asked(&self) -> usize {
        self.answered + self.dropped + self.refused + self.failed.len()
    }

    /// Requests that were worked on, a second.
    pub fn rate(&self) -> f64 {
        (self.answered + self.dropped) as f64 / self.time.as_secs_f64().max(1e-9)
    }

    /// To the first token, in ms.
    pub fn first(&self, share: f64) -> f64 {
        percentile(&self.first_ms, share)
    }

    /// To the end, in ms.
    pub fn whole(&self, share: f64) -> f64 {
        percentile(&self.whole_ms, share)
    }
}

fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (share * sorted.len() as f64) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
