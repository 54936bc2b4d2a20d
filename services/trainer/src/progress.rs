//! From the device thread to the job's log: steps are gathered and written about once a second.
//!
//! A store that is away delays the log, never the training: what could not be written waits here, thinned when it grows;
//! of checkpoints the newest.

use std::collections::VecDeque;
use std::time::Duration;

use tailor_domain::{JobId, LogKind, StepMetrics, TuningMetrics};
use tailor_queue::JobQueue;
use tailor_serverkit::JobMeter;
use tailor_train::Checkpoint;
use tokio::sync::mpsc;

use crate::checkpoints::Checkpoints;
use crate::journal::Journal;

/// How often the log grows while a job trains.
const FLUSH_EVERY: Duration = Duration::from_millis(700);
/// Steps held back while the store is away; past this every other one is dropped.
const MAX_HELD: usize = 4096;

/// What the device thread reports.
#[derive(Debug)]
pub enum Tick {
    Step(StepMetrics),
    Tuning(TuningMetrics),
    Note(String),
    Checkpoint(Box<Checkpoint>),
    Evaluated { done: u64, total: u64 },
}

pub struct Progress<'a> {
    pub journal: &'a Journal,
    pub queue: &'a dyn JobQueue,
    pub job: &'a JobId,
    pub fence: u64,
    pub checkpoints: Checkpoints,
    pub meter: JobMeter,
}

/// What has not been written yet.
#[derive(Default)]
struct Held {
    steps: Vec<StepMetrics>,
    /// Measurements and notes, in their order.
    told: VecDeque<(LogKind, String)>,
    evaluated: Option<(u64, u64)>,
    checkpoint: Option<Box<Checkpoint>>,
}

impl Progress<'_> {
    /// Writes what comes until the channel closes, then the rest.
    pub async fn drain(&self, mut ticks: mpsc::Receiver<Tick>) {
        let mut held = Held::default();
        let mut flush = tokio::time::interval(FLUSH_EVERY);
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut has_begun = false;
        loop {
            tokio::select! {
                tick = ticks.recv() => match tick {
                    Some(Tick::Step(step)) => {
                        self.meter.step(&step);
                        hold(&mut held.steps, step);
                        if !has_begun {
                            // Whoever waits for the first step sees it at once.
                            has_begun = true;
                            self.flush(&mut held).await;
                        }
                    }
                    Some(Tick::Tuning(measured)) => {
                        self.meter.tuning(&measured);
                        held.told.push_back((LogKind::Tuning { measured }, String::new()));
                    }
                    Some(Tick::Note(note)) => held.told.push_back((LogKind::Note, note)),
                    Some(Tick::Checkpoint(checkpoint)) => held.checkpoint = Some(checkpoint),
                    Some(Tick::Evaluated { done, total }) => held.evaluated = Some((done, total)),
                    None => break,
                },
                _ = flush.tick() => self.flush(&mut held).await,
            }
        }
        self.flush(&mut held).await;
    }

    async fn flush(&self, held: &mut Held) {
        if !held.steps.is_empty() && self.write(LogKind::Progress { steps: held.steps.clone() }, "").await {
            held.steps.clear();
        }
        while let Some((kind, message)) = held.told.front()
            && self.write(kind.clone(), message).await
        {
            held.told.pop_front();
        }
        if let Some((done, total)) = held.evaluated
            && self.write(LogKind::Evaluation { done, total }, "").await
        {
            held.evaluated = None;
        }
        if let Some(checkpoint) = held.checkpoint.take() {
            held.checkpoint = self.save(checkpoint).await;
        }
    }

    /// Gives the checkpoint back where it could not be saved and may be later.
    async fn save(&self, checkpoint: Box<Checkpoint>) -> Option<Box<Checkpoint>> {
        let step = checkpoint.step();
        let written = tokio::task::spawn_blocking(move || (checkpoint.to_bytes(), checkpoint)).await;
        let (bytes, checkpoint) = match written {
            Ok((Ok(bytes), checkpoint)) => (bytes, checkpoint),
            Ok((Err(error), _)) => {
                tracing::error!(job = %self.job, step, %error, "no checkpoint of this step");
                return None;
            }
            Err(error) => {
                tracing::error!(job = %self.job, step, %error, "no checkpoint of this step");
                return None;
            }
        };
        match self.checkpoints.save(self.fence, step, bytes).await {
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(job = %self.job, step, %error, "checkpoint could not be saved; it is kept and tried again");
                Some(checkpoint)
            }
        }
    }

    async fn write(&self, kind: LogKind, message: &str) -> bool {
        match self.journal.append(self.job, self.fence, kind, message).await {
            Ok(_) => {
                // Only a hint.
                let _ = self.queue.notify(self.job).await;
                true
            }
            Err(error) => {
                tracing::warn!(job = %self.job, %error, "progress could not be written; it is kept and tried again");
                false
            }
        }
    }
}

fn hold(steps: &mut Vec<StepMetrics>, step: StepMetrics) {
    if steps.len() >= MAX_HELD {
        let mut keep = false;
        steps.retain(|_| {
            keep = !keep;
            keep
        });
    }
    steps.push(step);
}
