//! A job's life: one table says which event moves which state; everything else is refused.
//!
//! The log of a job is a totally ordered list of [`LogEntry`]; its state is the fold of that list over [`JobState::next`].

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobState {
    Queued,
    Leased,
    Preparing,
    Training,
    Paused,
    Evaluating,
    Publishing,
    Succeeded,
    Failed,
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobEvent {
    /// A worker took the job.
    Leased,
    /// Base and shards are being fetched.
    Prepare,
    /// The first step is about to run.
    Train,
    /// Its owner wants it to wait, with what it has learnt so far; its worker is free for others.
    Pause,
    /// Its owner wants it to go on.
    Resume,
    /// The last step has run; validation rows are being predicted.
    Evaluate,
    /// The adapter is being published.
    Publish,
    /// The version exists.
    Succeed,
    Fail,
    Cancel,
    /// The worker's lease ran out, or it gave the job back.
    LeaseLost,
    /// For too long no worker was there that could run it.
    Unclaimed,
}

/// An event that a state does not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {state} cannot {event}")]
pub struct Refused {
    pub state: JobState,
    pub event: JobEvent,
}

impl Refused {
    pub fn code(&self) -> ErrorCode {
        ErrorCode::FailedPrecondition
    }
}

impl JobState {
    pub const ALL: [Self; 10] = [
        Self::Queued,
        Self::Leased,
        Self::Preparing,
        Self::Training,
        Self::Paused,
        Self::Evaluating,
        Self::Publishing,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The table. A new attempt (`Leased`) may begin from any unfinished state: the worker before it is gone or fenced.
    ///
    /// # Errors
    /// [`Refused`] where the table has no entry.
    pub fn next(self, event: JobEvent) -> Result<Self, Refused> {
        use JobEvent as E;
        use JobState as S;
        match (self, event) {
            (S::Succeeded | S::Failed | S::Cancelled, _) => Err(Refused { state: self, event }),
            (_, E::Fail) => Ok(S::Failed),
            (_, E::Cancel) => Ok(S::Cancelled),
            (S::Queued | S::Leased | S::Preparing | S::Training | S::Evaluating | S::Publishing, E::Leased) => {
                Ok(S::Leased)
            }
            (S::Leased | S::Preparing | S::Training | S::Evaluating | S::Publishing, E::LeaseLost) => Ok(S::Queued),
            // Whoever has it by now is its worker.
            (S::Queued, E::Unclaimed) => Ok(S::Failed),
            (S::Leased, E::Prepare) => Ok(S::Preparing),
            (S::Preparing, E::Train) => Ok(S::Training),
            // After training there is little left that waiting would save.
            (S::Queued | S::Leased | S::Preparing | S::Training, E::Pause) => Ok(S::Paused),
            (S::Paused, E::Resume) => Ok(S::Queued),
            (S::Training, E::Evaluate) => Ok(S::Evaluating),
            (S::Evaluating, E::Publish) => Ok(S::Publishing),
            (S::Publishing, E::Succeed) => Ok(S::Succeeded),
            (
                S::Queued | S::Leased | S::Preparing | S::Training | S::Paused | S::Evaluating | S::Publishing,
                E::Leased
                | E::Prepare
                | E::Train
                | E::Pause
                | E::Resume
                | E::Evaluate
                | E::Publish
                | E::Succeed
                | E::LeaseLost
                | E::Unclaimed,
            ) => Err(Refused { state: self, event }),
        }
    }

    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Leased => "LEASED",
            Self::Preparing => "PREPARING",
            Self::Training => "TRAINING",
            Self::Paused => "PAUSED",
            Self::Evaluating => "EVALUATING",
            Self::Publishing => "PUBLISHING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for JobEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leased => "be leased",
            Self::Prepare => "be prepared",
            Self::Train => "begin training",
            Self::Pause => "be paused",
            Self::Resume => "be resumed",
            Self::Evaluate => "be evaluated",
            Self::Publish => "be published",
            Self::Succeed => "succeed",
            Self::Fail => "fail",
            Self::Cancel => "be cancelled",
            Self::LeaseLost => "lose its lease",
            Self::Unclaimed => "be given up for want of a worker",
        })
    }
}

/// What one optimizer step showed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    pub step: u64,
    pub total_steps: u64,
    /// Mean cross-entropy over the step's unmasked tokens, in nats.
    pub loss: f64,
    /// Global L2 norm of the adapter's gradient before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Tokens in the step, padding not counted.
    pub tokens: u64,
    pub tokens_per_second: f64,
}

/// What a measurement on the tuning rows showed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TuningMetrics {
    /// Steps done before it.
    pub step: u64,
    /// Mean cross-entropy over the rows' unmasked tokens, in nats; of preference pairs their mean loss.
    pub loss: f64,
    /// Share of those tokens that the model would have chosen itself; of pairs the share whose chosen answer it prefers.
    pub token_accuracy: f64,
    /// Unmasked tokens, or pairs.
    pub tokens: u64,
    /// Whether no measurement before it had a lower loss.
    pub best: bool,
}

/// What a log entry says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LogKind {
    State {
        event: JobEvent,
    },
    /// Steps since the entry before, in order.
    Progress {
        steps: Vec<StepMetrics>,
    },
    /// Loss and accuracy on the tuning rows.
    Tuning {
        measured: TuningMetrics,
    },
    /// How far the prediction of validation rows is.
    Evaluation {
        done: u64,
        total: u64,
    },
    Metrics {
        metrics: BTreeMap<String, f64>,
    },
    /// While it is queued: whether a worker is there that could run it.
    Waiting {
        is_there: bool,
    },
    /// Something a person should read.
    Note,
}

/// `jobs/<job>/log/<seq>.json`, created if absent: `seq` is the one order of everything that happened to the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    pub seq: u64,
    pub at_ms: u64,
    /// The attempt that wrote it; 0 for the API.
    pub fence: u64,
    pub message: String,
    #[serde(flatten)]
    pub kind: LogKind,
}

/// Folds a log into the state it leaves the job in. Entries that the table refuses (a zombie's late words) change nothing.
pub fn fold<'a>(entries: impl IntoIterator<Item = &'a LogEntry>) -> JobState {
    let mut state = JobState::Queued;
    let mut fence = 0;
    for entry in entries {
        let LogKind::State { event } = entry.kind else { continue };
        let from_older_attempt = entry.fence != 0 && entry.fence < fence;
        if from_older_attempt {
            continue;
        }
        if let Ok(next) = state.next(event) {
            state = next;
            fence = fence.max(entry.fence);
        }
    }
    state
}

#[cfg(test)]
mod tests;
