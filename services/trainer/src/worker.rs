//! The worker role: lease jobs, run an attempt at each, say what came of it.
//!
//! Up to `trainer.jobs_at_once` run at a time, in turns on one device; those on the same base share it in memory. One that does
//! not fit beside what runs goes back to the queue, until others have gone before it for long enough; so does one that only another
//! worker can hold. Neither counts as an attempt. Whatever becomes of one, the others do not notice. A worker with nothing to run,
//! or that has let a call wait for as long, takes a seat in another worker's job.

mod admission;
mod present;
mod seats;
mod turned_away;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tailor_blobs::Store;
use tailor_domain::{JobEvent, JobId, JobSpec, JobState};
use tailor_queue::{Class, JobQueue, Lease};
use tailor_serverkit::Settings;
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::admission::Admission;
use self::turned_away::TurnedAway;
use crate::attempt::{Attempt, Clients, Ended};
use crate::calibrations::Calibrations;
use crate::checkpoints::Checkpoints;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::journal::{Journal, Outcome};
use crate::keeper::{Halt, HaltFlag, Keeper};
use crate::matching::class_on;
use crate::ranks::{Gathered, Gatherer, Party};
use crate::room::{Place, Room};
use crate::seat;
use crate::view::View;

/// How long one wait for a job lasts before the worker looks whether it must stop, or somebody calls for it.
const LEASE_WAIT: Duration = Duration::from_secs(2);
/// Pause after the queue or the store failed us.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a worker lets jobs that it gave back wait in the queue for others, unless one of its own ends sooner.
const NO_ROOM: Duration = Duration::from_secs(3);
/// Longest pause between two tries to write the end of a job.
const MAX_PAUSE: Duration = Duration::from_secs(15);

pub struct Worker {
    name: String,
    class: Class,
    journal: Journal,
    queue: Arc<dyn JobQueue>,
    store: Store,
    clients: Clients,
    cache_dir: PathBuf,
    lease_ttl: Duration,
    checkpoint_every: Duration,
    max_attempts: u64,
    calibrate: bool,
    memory_limit: Option<u64>,
    gatherer: Gatherer,
    jobs_at_once: usize,
    /// How long other jobs may go before one that does not fit beside what runs.
    overtake: Duration,
    room: Room,
    /// Held while a base is brought to the cache.
    fetching: Mutex<()>,
    /// Why nothing can run on the device any more.
    lost: OnceLock<String>,
}

/// Lets others have what was given back, unless something changes here first.
async fn pause(running: &mut JoinSet<()>, stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        Some(_) = running.join_next() => {}
        () = tokio::time::sleep(NO_ROOM) => {}
    }
}

/// A task that ends with its handle.
struct Bound(JoinHandle<()>);

impl Drop for Bound {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Worker {
    pub fn new(
        journal: Journal,
        queue: Arc<dyn JobQueue>,
        store: Store,
        clients: Clients,
        settings: &Settings,
    ) -> Self {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "local".into());
        let memory_limit = Some(settings.trainer.memory_bytes).filter(|bytes| *bytes > 0);
        let room = Room::new(memory_limit);
        let class = class_on(room.worker());
        Self {
            class,
            name: format!("{host}-{}-{:06x}", std::process::id(), rand::random::<u32>() & 0xff_ffff),
            journal,
            queue,
            store,
            clients,
            cache_dir: settings.cache_dir.clone(),
            lease_ttl: Duration::from_millis(settings.trainer.lease_ms),
            checkpoint_every: Duration::from_millis(settings.trainer.checkpoint_ms),
            max_attempts: settings.trainer.max_attempts,
            calibrate: settings.trainer.calibrate,
            memory_limit,
            jobs_at_once: settings.trainer.jobs_at_once as usize,
            overtake: Duration::from_millis(settings.trainer.overtake_ms),
            room,
            fetching: Mutex::new(()),
            lost: OnceLock::new(),
            gatherer: Gatherer::new(settings, class),
        }
    }

    pub fn queue(&self) -> &Arc<dyn JobQueue> {
        &self.queue
    }

    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    pub fn gatherer(&self) -> &Gatherer {
        &self.gatherer
    }

    pub fn attempt<'a>(
        &'a self,
        device: &'a Device,
        job: &'a JobId,
        spec: &'a JobSpec,
        fence: u64,
        halt: HaltFlag,
        party: Option<Arc<Party>>,
    ) -> Attempt<'a> {
        Attempt {
            journal: &self.journal,
            queue: self.queue.as_ref(),
            store: &self.store,
            clients: &self.clients,
            cache_dir: &self.cache_dir,
            device,
            fetching: &self.fetching,
            job,
            spec,
            fence,
            halt,
            checkpoint_every: self.checkpoint_every,
            party,
            shares: self.jobs_at_once > 1,
        }
    }

    /// After an error that stays with the process every job would fail here: none is leased any more, and the process ends.
    pub fn note_device(&self, error: &Error, stop: &CancellationToken) {
        if error.is_device_lost() {
            self.lost.get_or_init(|| error.to_string());
            stop.cancel();
        }
    }

    /// Runs jobs until `stop`, and gives back what runs then.
    ///
    /// # Errors
    /// The device is lost to this process; `stop` is cancelled then.
    pub async fn run(self, stop: CancellationToken) -> Result<(), String> {
        let device = match Device::start("tailor-device") {
            Ok(device) => device,
            Err(error) => {
                tracing::error!(%error, "this worker can run no jobs");
                return Ok(());
            }
        };
        let calibrations = Calibrations::of(&self.store);
        let (cache_dir, limit) = (self.cache_dir.clone(), self.memory_limit);
        let first = calibrations.introduce(&device, &cache_dir, self.calibrate, limit).await;
        let staying = present::stay(calibrations, device.clone(), cache_dir, limit, first, stop.clone());
        let mut staying = Bound(tokio::spawn(staying));
        tracing::info!(worker = self.name, at_once = self.jobs_at_once, "waiting for jobs");
        let worker = Arc::new(self);
        let mut running = JoinSet::new();
        // Those that were left to others since the last pause: what stands behind them in the line need not wait for it.
        let mut passed = HashSet::new();
        let mut turned_away = TurnedAway::new(worker.overtake);
        while !stop.is_cancelled() {
            // Before a job: somebody waits for whoever takes a seat. That the queue is away is told below.
            while running.try_join_next().is_some() {}
            // Whether its part fits is asked of others, who may take their time. A seat that is taken just when the worker is to
            // stop is free again once its own time has run out.
            let seat = tokio::select! {
                () = stop.cancelled() => break,
                seat = worker.find_seat(running.is_empty(), &mut turned_away) => seat,
            };
            if let Some(seat) = seat {
                if worker.let_others_end(&seat, &mut turned_away, &mut running, &stop).await {
                    turned_away.forget(&seat.job);
                    seat::sit(&worker, &device, seat, &stop).await;
                }
                continue;
            }
            if running.len() >= worker.jobs_at_once {
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = running.join_next() => {}
                    // Somebody may have called meanwhile.
                    () = tokio::time::sleep(LEASE_WAIT), if worker.jobs_at_once > 1 => {}
                }
                continue;
            }
            let leased = tokio::select! {
                () = stop.cancelled() => break,
                leased = worker.queue.lease(&worker.name, worker.class, worker.lease_ttl, LEASE_WAIT) => leased,
            };
            match leased {
                Ok(None) => {}
                Ok(Some(lease)) => {
                    let admission = tokio::select! {
                        () = stop.cancelled() => {
                            worker.give_back(&lease).await;
                            break;
                        }
                        admission = worker.admit(&lease) => admission,
                    };
                    let place = match admission {
                        Admission::Here(place) => Some(place),
                        Admission::Elsewhere => {
                            worker.give_back(&lease).await;
                            if !passed.insert(lease.job.clone()) {
                                passed.clear();
                                pause(&mut running, &stop).await;
                            }
                            None
                        }
                        Admission::Later(turned) => {
                            passed.clear();
                            worker.turn_away(&lease, turned, &mut turned_away, &mut running, &stop).await
                        }
                    };
                    let Some(place) = place else { continue };
                    turned_away.forget(&lease.job);
                    let (worker, device, stop) = (Arc::clone(&worker), device.clone(), stop.clone());
                    running.spawn(async move { worker.run_leased(lease, place, &device, &stop).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot lease a job; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        // Each has been told by its keeper.
        while running.join_next().await.is_some() {}
        // It says goodbye.
        let _ = (&mut staying.0).await;
        match worker.lost.get() {
            None => Ok(()),
            Some(error) => Err(format!(
                "{error}; the device answers nothing else until this process ends; its jobs went back to the queue, start it \
                 again"
            )),
        }
    }

    async fn give_back(&self, lease: &Lease) {
        if let Err(error) = self.queue.release(lease).await {
            tracing::warn!(job = %lease.job, %error, "cannot give the job back; its lease will run out");
        }
    }

    /// `_place` is free again when this ends, however it ends.
    async fn run_leased(&self, lease: Lease, _place: Place, device: &Device, stop: &CancellationToken) {
        let span = tracing::info_span!("job.run", job = %lease.job, worker = self.name);
        if let Some(parent) = &lease.trace {
            tailor_serverkit::trace::set_parent(&span, parent);
        }
        async {
            match self.one_attempt(&lease, device, stop).await {
                Ok(()) => {}
                Err(error) => {
                    self.note_device(&error, stop);
                    tracing::warn!(job = %lease.job, %error, "attempt ended without a word in the log; the job goes back");
                    tokio::time::sleep(PAUSE).await;
                    self.give_back(&lease).await;
                }
            }
        }
        .instrument(span)
        .await;
    }

    /// Err: the store is away, so nothing could be said about the job.
    async fn one_attempt(&self, lease: &Lease, device: &Device, stop: &CancellationToken) -> Result<()> {
        let job = &lease.job;
        let spec = self.journal.spec(job).await?;
        if let Some(done) = self.settle_if_done(lease).await? {
            tracing::info!(%job, state = %done, "nothing left to do");
            return Ok(());
        }
        let mut party = None;
        if spec.recipe.train.ranks > 1 {
            let ranks = spec.recipe.train.ranks;
            match self.gatherer.gather(&self.queue, &self.journal, lease, ranks, stop).await? {
                Gathered::All(gathered) => party = Some(gathered),
                Gathered::GiveBack => return Ok(self.queue.release(lease).await?),
                Gathered::Cancelled => {
                    self.done_with(lease).await;
                    return Ok(());
                }
                Gathered::LeaseLost => return Ok(()),
            }
        }
        let fence = self.journal.begin_attempt(job, &self.name).await?;
        let with = party.as_ref().map(|party| format!(" with {}", party.with.join(", "))).unwrap_or_default();
        self.journal.event(job, fence, JobEvent::Leased, &format!("attempt {fence} on {}{with}", self.name)).await?;
        // An attempt that got further than all before it was not in vain, however it ended; nor was one that was paused.
        let furthest = Checkpoints::of(&self.store, job).furthest_attempt().await?;
        let useful = furthest.max(self.view(job).await?.paused_fence);
        let in_vain = fence - 1 - useful.min(fence - 1);
        if in_vain >= self.max_attempts {
            let message = format!(
                "{in_vain} attempts in a row got no further (their workers died or lost touch); that is the limit \
                 (trainer.max_attempts); look at the trainer's log, then create the job anew"
            );
            return self.end(lease, fence, JobEvent::Fail, &message).await;
        }
        let halt = HaltFlag::default();
        let keeper = Keeper {
            journal: self.journal.clone(),
            queue: self.queue.clone(),
            lease: lease.clone(),
            fence,
            halt: halt.clone(),
            stop: stop.clone(),
        };
        // Ends with this attempt, even where that ends by a panic: a lease that nobody works on must run out.
        let keeping = Bound(tokio::spawn(keeper.run()));
        let attempt = self.attempt(device, job, &spec, fence, halt.clone(), party);
        let ended = attempt.run().await;
        drop(keeping);
        self.conclude(lease, fence, ended).await
    }

    async fn conclude(&self, lease: &Lease, fence: u64, ended: Result<Ended>) -> Result<()> {
        let job = &lease.job;
        match ended {
            Ok(Ended::Published(version)) => {
                let outcome = Outcome { adapter_version: version, fence };
                self.insist(|| self.journal.finish(job, &outcome)).await;
                self.end(lease, fence, JobEvent::Succeed, &format!("published version {version}")).await
            }
            Ok(Ended::Halted(Halt::Cancelled)) => {
                tracing::info!(%job, "cancelled");
                self.done_with(lease).await;
                Ok(())
            }
            Ok(Ended::Halted(Halt::Paused)) => {
                tracing::info!(%job, "paused");
                self.set_aside(lease).await
            }
            Ok(Ended::Halted(Halt::Superseded)) => {
                tracing::warn!(%job, fence, "a newer attempt runs; this one stops without a word");
                Ok(())
            }
            Ok(Ended::Halted(Halt::ShuttingDown)) => {
                let message = format!("{} is stopping; the job goes back to the queue", self.name);
                self.journal.event(job, fence, JobEvent::LeaseLost, &message).await?;
                self.queue.release(lease).await?;
                Ok(())
            }
            Err(error) if error.retryable() => {
                let message = format!("attempt {fence} was interrupted: {error}; the job goes back to the queue");
                self.insist(|| self.journal.event(job, fence, JobEvent::LeaseLost, &message)).await;
                Err(error)
            }
            Err(error) => self.end(lease, fence, JobEvent::Fail, &error.to_string()).await,
        }
    }

    /// Writes the job's last word, however long the store is away, and takes it out of the queue.
    async fn end(&self, lease: &Lease, fence: u64, event: JobEvent, message: &str) -> Result<()> {
        self.insist(|| self.journal.event(&lease.job, fence, event, message)).await;
        self.done_with(lease).await;
        Ok(())
    }

    async fn done_with(&self, lease: &Lease) {
        if let Err(error) = Checkpoints::of(&self.store, &lease.job).remove().await {
            tracing::warn!(job = %lease.job, %error, "its checkpoints stay in the store");
        }
        if let Err(error) = self.queue.ack(lease).await {
            // Whoever gets the job next finds it finished.
            tracing::warn!(job = %lease.job, %error, "the queue was not told that the job is finished");
        }
        let _ = self.queue.notify(&lease.job).await;
    }

    /// Takes a paused job out of the queue. Its checkpoints stay, unless its owner has cancelled it meanwhile; one that is
    /// resumed already goes to the back of the line.
    async fn set_aside(&self, lease: &Lease) -> Result<()> {
        let job = &lease.job;
        if let Err(error) = self.queue.ack(lease).await {
            // Whoever gets the job next finds it paused; one that is resumed is offered again below.
            tracing::warn!(%job, %error, "the queue was not told that the job is set aside");
        }
        let _ = self.queue.notify(job).await;
        let state = self.view(job).await?.state;
        if state.is_final() {
            Checkpoints::of(&self.store, job).remove().await
        } else if state != JobState::Paused {
            // Resumed while it was still leased, so nobody else could put it back.
            Ok(self.queue.enqueue(job, lease.class, lease.trace.clone()).await.map(drop)?)
        } else {
            Ok(())
        }
    }

    async fn view(&self, job: &JobId) -> Result<View> {
        let mut view = View::default();
        self.journal.log(job, 1).await?.iter().for_each(|entry| view.apply(entry));
        Ok(view)
    }

    /// A job that was finished or published before this lease, or is paused.
    async fn settle_if_done(&self, lease: &Lease) -> Result<Option<JobState>> {
        let mut view = self.view(&lease.job).await?;
        if view.state == JobState::Paused {
            self.set_aside(lease).await?;
            return Ok(Some(JobState::Paused));
        }
        if !view.state.is_final()
            && view.state == JobState::Publishing
            && let Some(outcome) = self.journal.outcome(&lease.job).await?
        {
            // The attempt before died between its result and its last word.
            let message = format!("published version {}", outcome.adapter_version);
            self.journal.event(&lease.job, outcome.fence, JobEvent::Succeed, &message).await?;
            view.state = JobState::Succeeded;
        }
        if !view.state.is_final() {
            return Ok(None);
        }
        self.done_with(lease).await;
        Ok(Some(view.state))
    }

    /// Repeats what can succeed later; gives up on what cannot.
    async fn insist<T, F: Future<Output = Result<T>>>(&self, mut action: impl FnMut() -> F) {
        let mut pause = PAUSE;
        loop {
            match action().await {
                Ok(_) => return,
                Err(error) if error.retryable() => {
                    tracing::warn!(%error, ?pause, "cannot write the job's end; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                Err(error) => {
                    tracing::error!(%error, "the job's end cannot be written");
                    return;
                }
            }
        }
    }
}
