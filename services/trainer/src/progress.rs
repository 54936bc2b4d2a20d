//! From the device thread to the job's log: steps are gathered and written about once a second.
//!
//! A store that is away or slow delays the log, never the training: what could not be written waits here, thinned when it grows;
//! of checkpoints the newest.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tailor_domain::{JobId, LogKind, StepMetrics, TuningMetrics};
use tailor_queue::JobQueue;
use tailor_serverkit::JobMeter;
use tailor_train::Checkpoint;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

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

impl Held {
    fn take_in(&mut self, tick: Tick) {
        match tick {
            Tick::Step(step) => hold(&mut self.steps, step),
            Tick::Tuning(measured) => self.told.push_back((LogKind::Tuning { measured }, String::new())),
            Tick::Note(note) => self.told.push_back((LogKind::Note, note)),
            Tick::Checkpoint(checkpoint) => self.checkpoint = Some(checkpoint),
            Tick::Evaluated { done, total } => self.evaluated = Some((done, total)),
        }
    }

    /// Steps that could not be written, before those that have come since.
    fn put_back(&mut self, steps: Vec<StepMetrics>) {
        let newer = std::mem::replace(&mut self.steps, steps);
        newer.into_iter().for_each(|step| hold(&mut self.steps, step));
    }

    /// The same of what is told.
    fn put_back_told(&mut self, mut told: VecDeque<(LogKind, String)>) {
        told.append(&mut self.told);
        self.told = told;
    }
}

/// Held for a moment only, never while something is waited for.
fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    // Nothing panics while it is held.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Progress<'_> {
    /// Writes what comes until the channel closes, then the rest. What comes while the store takes its time is taken in all the
    /// same: whoever reports waits for no store.
    pub async fn drain(&self, ticks: mpsc::Receiver<Tick>) {
        let (held, begun, over) = (Mutex::new(Held::default()), Notify::new(), CancellationToken::new());
        tokio::join!(self.take_in(ticks, &held, &begun, &over), self.write_out(&held, &begun, &over));
    }

    async fn take_in(
        &self,
        mut ticks: mpsc::Receiver<Tick>,
        held: &Mutex<Held>,
        begun: &Notify,
        over: &CancellationToken,
    ) {
        let mut has_begun = false;
        while let Some(tick) = ticks.recv().await {
            let is_step = matches!(tick, Tick::Step(_));
            match &tick {
                Tick::Step(step) => self.meter.step(step),
                Tick::Tuning(measured) => self.meter.tuning(measured),
                Tick::Note(_) | Tick::Checkpoint(_) | Tick::Evaluated { .. } => {}
            }
            lock(held).take_in(tick);
            if is_step && !has_begun {
                // Whoever waits for the first step sees it at once.
                has_begun = true;
                begun.notify_one();
            }
        }
        over.cancel();
    }

    async fn write_out(&self, held: &Mutex<Held>, begun: &Notify, over: &CancellationToken) {
        let mut flush = tokio::time::interval(FLUSH_EVERY);
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let is_over = tokio::select! {
                () = over.cancelled() => true,
                () = begun.notified() => false,
                _ = flush.tick() => false,
            };
            self.flush(held).await;
            if is_over {
                return;
            }
        }
    }

    async fn flush(&self, held: &Mutex<Held>) {
        // Together, so that no measurement comes to stand before its steps.
        let (steps, mut told) = {
            let mut held = lock(held);
            (std::mem::take(&mut held.steps), std::mem::take(&mut held.told))
        };
        let mut goes_on = steps.is_empty() || self.write(LogKind::Progress { steps: steps.clone() }, "").await;
        if !goes_on {
            lock(held).put_back(steps);
        }
        while goes_on && let Some((kind, message)) = told.pop_front() {
            goes_on = self.write(kind.clone(), &message).await;
            if !goes_on {
                told.push_front((kind, message));
            }
        }
        lock(held).put_back_told(told);
        let evaluated = lock(held).evaluated.take();
        if let Some((done, total)) = evaluated
            && !self.write(LogKind::Evaluation { done, total }, "").await
        {
            let mut held = lock(held);
            held.evaluated = held.evaluated.or(evaluated);
        }
        let checkpoint = lock(held).checkpoint.take();
        if let Some(checkpoint) = checkpoint {
            let unsaved = self.save(checkpoint).await;
            let mut held = lock(held);
            // A newer one may have come.
            held.checkpoint = held.checkpoint.take().or(unsaved);
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

#[cfg(test)]
mod tests {
    use tailor_blobs::Store;
    use tailor_queue::InProcessQueue;
    use tailor_testkit::{Fault, Faults, FlakyStore, Op};

    use super::*;
    use crate::fixtures::spec;

    struct World {
        journal: Journal,
        queue: InProcessQueue,
        checkpoints: Checkpoints,
        job: JobId,
        faults: Faults,
    }

    impl World {
        fn new() -> Self {
            let (backend, faults) = FlakyStore::memory();
            let (store, job) = (Store::over(backend, "memory://"), JobId::from_parts(1_700_000_000_000, 1));
            let checkpoints = Checkpoints::of(&store, &job);
            Self { journal: Journal::new(store), queue: InProcessQueue::new(), checkpoints, job, faults }
        }

        fn progress(&self) -> Progress<'_> {
            let (checkpoints, meter) = (self.checkpoints.clone(), JobMeter::of(&self.job, &spec()));
            Progress { journal: &self.journal, queue: &self.queue, job: &self.job, fence: 1, checkpoints, meter }
        }

        /// The steps that the log tells of, in its order.
        async fn steps(&self) -> Vec<u64> {
            let log = self.journal.log(&self.job, 1).await.expect("log");
            let steps = log.into_iter().filter_map(|entry| match entry.kind {
                LogKind::Progress { steps } => Some(steps),
                _ => None,
            });
            steps.flatten().map(|step| step.step).collect()
        }
    }

    fn step(step: u64) -> Tick {
        let (loss, grad_norm, learning_rate, tokens_per_second) = (1.0, 1.0, 1e-4, 10.0);
        Tick::Step(StepMetrics {
            step,
            total_steps: 200,
            loss,
            grad_norm,
            learning_rate,
            tokens: 10,
            tokens_per_second,
        })
    }

    async fn within_a_minute(work: impl Future<Output = ()>) {
        tokio::time::timeout(Duration::from_secs(60), work).await.expect("nobody waits for ever");
    }

    #[tokio::test]
    async fn whoever_reports_waits_for_no_store() {
        let world = World::new();
        let (ticks, inbox) = mpsc::channel(4);
        let slow = world.faults.pause_at(1);
        let report = async {
            for at in 1..=100 {
                ticks.send(step(at)).await.expect("taken in");
            }
            // The first of them is not written yet.
            slow.go_on();
            drop(ticks);
        };
        let progress = world.progress();
        within_a_minute(async {
            tokio::join!(progress.drain(inbox), report);
        })
        .await;
        assert_eq!(world.steps().await, (1..=100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_written_later_in_its_order() {
        let world = World::new();
        let (ticks, inbox) = mpsc::channel(4);
        world.faults.fail_all(Op::Create, Fault::Away);
        let report = async {
            for at in 1..=10 {
                ticks.send(step(at)).await.expect("taken in");
            }
            while world.faults.count(Op::Create) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            for at in 11..=20 {
                ticks.send(step(at)).await.expect("taken in");
            }
            world.faults.heal();
            drop(ticks);
        };
        let progress = world.progress();
        within_a_minute(async {
            tokio::join!(progress.drain(inbox), report);
        })
        .await;
        assert_eq!(world.steps().await, (1..=20).collect::<Vec<_>>());
    }
}
