//! A worker in another worker's job: it prepares what rank 0 prepares, trains its share of every batch, and leaves the
//! rest (checkpoints, predictions, the version) to rank 0.

use std::sync::Arc;
use std::time::Duration;

use tailor_domain::{LogKind, StepMetrics};
use tailor_queue::Seat;
use tailor_train::{Checkpoint, Observer};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::attempt::{Attempt, Prepared};
use crate::checkpoints::Record;
use crate::device;
use crate::error::{Error, Result};
use crate::journal::now_ms;
use crate::keeper::{Halt, HaltFlag};
use crate::ranks::Party;
use crate::worker::Worker;

/// Pause between two looks whether all seats are taken.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Notes under way to the log; more are dropped.
const NOTES: usize = 64;

/// Sits until the job's training has ended, the seat is lost or `stop`.
pub async fn sit(worker: &Worker, seat: Seat, stop: &CancellationToken) {
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
    let done = train(worker, &seat, &halt).await;
    raised.abort();
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

async fn train(worker: &Worker, seat: &Seat, halt: &HaltFlag) -> Result<()> {
    let party = Arc::new(worker.gatherer().join(worker.queue(), seat).await?);
    let spec = worker.journal().spec(&seat.job).await?;
    // Fence 0: rank 0 says which attempt this is, and says everything that the log is told.
    let attempt = worker.attempt(&seat.job, &spec, 0, halt.clone(), None);
    let mut prepared = attempt.prepare().await?;
    let fence = follow_plan(&attempt, &party, halt, &mut prepared).await?;
    let (notes, inbox) = mpsc::channel(NOTES);
    let work = {
        let (party, halt, spec) = (party.clone(), halt.clone(), spec.clone());
        move || {
            let gone = || halt.raised().is_some();
            let base = prepared.load(&spec)?;
            let ranks = party.connect(&gone)?;
            let mut observer = Quiet { halt: halt.clone(), notes };
            prepared.train(&base, &spec, &ranks, &mut observer)?;
            Ok(())
        }
    };
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
    let (trained, ()) = tokio::join!(device::run("tailor-device", tracing::Span::current(), work), telling);
    match trained {
        Err(error) if halt.raised().is_none() && !is_about_others(&error) => {
            say(format!("failed: {error}")).await;
            Err(error)
        }
        other => other,
    }
}

/// Waits for rank 0's word; makes its checkpoint this rank's. Returns the attempt's fence.
async fn follow_plan(
    attempt: &Attempt<'_>,
    party: &Arc<Party>,
    halt: &HaltFlag,
    prepared: &mut Prepared,
) -> Result<u64> {
    let (waiting, halted) = (party.clone(), halt.clone());
    let wait = move || waiting.plan(&|| halted.raised().is_some());
    let (fence, digest) = device::run("tailor-meeting", tracing::Span::current(), wait).await?;
    let Some(digest) = digest else {
        prepared.checkpoint = None;
        return Ok(fence);
    };
    if prepared.checkpoint.as_ref().is_none_or(|(record, _)| record.digest != digest) {
        let bytes = attempt.blob(&digest).await?;
        let checkpoint = Checkpoint::from_bytes(&bytes)?;
        let record = Record { fence, step: checkpoint.step(), digest, size_bytes: bytes.len() as u64, at_ms: now_ms() };
        prepared.checkpoint = Some((record, checkpoint));
    }
    Ok(fence)
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
