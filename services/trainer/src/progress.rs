//! From the device thread to the job's log: steps are gathered and written about once a second.
//!
//! A store that is away delays the log, never the training: what could not be written waits here, thinned when it grows.

use std::time::Duration;

use tailor_domain::{JobId, LogKind, StepMetrics};
use tailor_queue::JobQueue;
use tokio::sync::mpsc;

use crate::journal::Journal;

/// How often the log grows while a job trains.
const FLUSH_EVERY: Duration = Duration::from_millis(700);
/// Steps held back while the store is away; past this every other one is dropped.
const MAX_HELD: usize = 4096;

/// What the device thread reports.
#[derive(Debug, Clone)]
pub enum Tick {
    Step(StepMetrics),
    Evaluated { done: u64, total: u64 },
}

pub struct Progress<'a> {
    pub journal: &'a Journal,
    pub queue: &'a dyn JobQueue,
    pub job: &'a JobId,
    pub fence: u64,
}

impl Progress<'_> {
    /// Writes what comes until the channel closes, then the rest.
    pub async fn drain(&self, mut ticks: mpsc::Receiver<Tick>) {
        let mut steps = Vec::new();
        let mut evaluated = None;
        let mut flush = tokio::time::interval(FLUSH_EVERY);
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                tick = ticks.recv() => match tick {
                    Some(Tick::Step(step)) => hold(&mut steps, step),
                    Some(Tick::Evaluated { done, total }) => evaluated = Some((done, total)),
                    None => break,
                },
                _ = flush.tick() => self.flush(&mut steps, &mut evaluated).await,
            }
        }
        self.flush(&mut steps, &mut evaluated).await;
    }

    async fn flush(&self, steps: &mut Vec<StepMetrics>, evaluated: &mut Option<(u64, u64)>) {
        if !steps.is_empty() && self.write(LogKind::Progress { steps: steps.clone() }).await {
            steps.clear();
        }
        if let Some((done, total)) = *evaluated
            && self.write(LogKind::Evaluation { done, total }).await
        {
            *evaluated = None;
        }
    }

    async fn write(&self, kind: LogKind) -> bool {
        match self.journal.append(self.job, self.fence, kind, "").await {
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
