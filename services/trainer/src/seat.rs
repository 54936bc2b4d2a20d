//! A worker in another worker's job: it prepares what rank 0 prepares, trains its share of every batch, and leaves the
//! rest (checkpoints, predictions, the version) to rank 0.

use std::sync::Arc;
use std::time::Duration;

use tailor_domain::{LogKind, StepMetrics};
use tailor_queue::Seat;
use tailor_train::{Checkpoint, Observer};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempt;
use crate::checkpoints::Record;
use crate::device::{Device, Task};
use crate::error::{Error, Result};
use crate::journal::now_ms;
use crate::keeper::{Halt, HaltFlag};
use crate::ranks::Party;
use crate::resident::Bases;
use crate::training::Start;
use crate::worker::Worker;

/// Pause between two looks whether all seats are taken.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Notes under way to the log; more are dropped.
const NOTES: usize = 64;

/// Sits until the job's training has ended, the seat is lost or `stop`.
pub async fn sit(worker: &Worker, device: &Device, seat: Seat, stop: &CancellationToken) {
    let (job, rank) = (seat.job.clone(), seat.rank);
    tracing::info!(%job, rank, ranks = seat.ranks, "took a seat");
    if !all_taken(worker, &seat, stop).await {
        if let Err(error) = worker.queue().leave_seat(&seat).await {
            tracing::debug!(%job, rank, %error, "the seat is free once its time has run out");
        }
        return;
    }
    let halt = HaltFlag::default();
    let raised = {
        let (halt, stop) = (halt.clone(), stop.clone());
        tokio::spawn(async move {
            stop.cancelled().await;
            halt.raise(Halt::ShuttingDown);
        })
    };
    let done = train(worker, device, &seat, &halt).await;
    raised.abort();
    if let Err(error) = &done {
        worker.note_device(error, stop);
    }
    match done {
        Ok(()) => tracing::info!(%job, rank, "this rank's part is done"),
        Err(error) if halt.raised().is_some() || is_about_others(&error) => {
            tracing::info!(%job, rank, %error, "this rank's part ended early");
        }
        Err(error) => tracing::warn!(%job, rank, %error, "this rank failed"),
    }
    let _ = worker.queue().leave_seat(&seat).await;
}

/// Whether the other workers came before this one had to go.
async fn all_taken(worker: &Worker, seat: &Seat, stop: &CancellationToken) -> bool {
    loop {
        match worker.queue().keep_seat(seat).await {
            Ok(true) => return true,
            Ok(false) => {}
            Err(error) if error.retryable() => {
                tracing::warn!(job = %seat.job, %error, "cannot keep the seat; trying again")
            }
            Err(_) => {
                tracing::info!(job = %seat.job, rank = seat.rank, "the call was given up");
                return false;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn train(worker: &Worker, device: &Device, seat: &Seat, halt: &HaltFlag) -> Result<()> {
    let party = Arc::new(worker.gatherer().join(worker.queue(), seat).await?);
    let spec = worker.journal().spec(&seat.job).await?;
    // Fence 0: rank 0 says which attempt this is, and says everything that the log is told.
    let attempt = worker.attempt(device, &seat.job, &spec, 0, halt.clone(), None);
    let mut start = tokio::select! {
        prepared = attempt.prepare() => prepared?.start,
        _ = attempt.halted() => return Err(Error::Ranks("this worker must leave before the ranks are connected".into())),
    };
    let fence = follow_plan(&attempt, &party, halt, &mut start).await?;
    let (notes, inbox) = mpsc::channel(NOTES);
    let observer = Quiet { halt: halt.clone(), notes };
    let make = move || Part { start: Some(start), party, observer };
    let say = move |note: String| async move {
        let message = format!("rank {} ({}): {note}", seat.rank, seat.worker);
        if let Err(error) = worker.journal().append(&seat.job, fence, LogKind::Note, &message).await {
            tracing::warn!(job = %seat.job, %error, note, "a note is not in the job's log");
        }
    };
    let telling = async {
        let mut inbox = inbox;
        while let Some(note) = inbox.recv().await {
            say(note).await;
        }
    };
    let (trained, ()) = tokio::join!(device.run("seat", tracing::Span::current(), make), telling);
    match trained {
        Err(error) if halt.raised().is_none() && !is_about_others(&error) => {
            say(format!("failed: {error}")).await;
            Err(error)
        }
        other => other,
    }
}

/// Waits for rank 0's word; makes its checkpoint this rank's. Returns the attempt's fence.
async fn follow_plan(attempt: &Attempt<'_>, party: &Arc<Party>, halt: &HaltFlag, start: &mut Start) -> Result<u64> {
    let (waiting, halted) = (party.clone(), halt.clone());
    let wait = move || waiting.plan(&|| halted.raised().is_some());
    let (fence, digest) = attempt.device.once("meeting", tracing::Span::current(), wait).await?;
    let Some(digest) = digest else {
        start.checkpoint = None;
        return Ok(fence);
    };
    if start.checkpoint.as_ref().is_none_or(|(record, _)| record.digest != digest) {
        let bytes = attempt.blob(&digest).await?;
        let checkpoint = Checkpoint::from_bytes(&bytes)?;
        let record = Record { fence, step: checkpoint.step(), digest, size_bytes: bytes.len() as u64, at_ms: now_ms() };
        start.checkpoint = Some((record, checkpoint));
    }
    Ok(fence)
}

/// This rank's part of the training, to its end: nobody else has a turn while others wait for every step.
struct Part {
    start: Option<Start>,
    party: Arc<Party>,
    observer: Quiet,
}

impl Task for Part {
    type Answer = ();

    fn turn(&mut self, bases: &mut Bases) -> Result<Option<()>> {
        let start = self.start.take().ok_or(Error::DeviceGone)?;
        let halt = self.observer.halt.clone();
        let base = start.base(bases, &halt)?.base;
        let ranks = self.party.connect(&|| halt.raised().is_some())?;
        let mut session = start.session(&base, &ranks, &mut self.observer)?;
        while session.turn(&mut self.observer)?.is_none() {}
        Ok(Some(()))
    }
}

/// Whether it tells no more than that another rank is gone, which rank 0 tells better.
fn is_about_others(error: &Error) -> bool {
    matches!(error, Error::Ranks(_) | Error::Train(tailor_train::Error::Ranks { .. }))
}

/// Says nothing of what rank 0 says, and leaves when its worker stops.
struct Quiet {
    halt: HaltFlag,
    notes: mpsc::Sender<String>,
}

impl Observer for Quiet {
    fn on_step(&mut self, _: &StepMetrics) {}

    fn should_stop(&mut self) -> bool {
        self.halt.raised().is_some()
    }

    fn on_note(&mut self, note: &str) {
        let _ = self.notes.try_send(note.to_owned());
    }
}
