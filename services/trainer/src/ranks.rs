//! A job that several workers train: the one that leased it gathers the others, and meets them.
//!
//! Nobody waits for ever. A worker that does not find enough others gives its job back, and one that sees an older call lack
//! workers like it gives way to it, so that of several such jobs one has all it needs. Until the ranks are connected the queue says
//! who is gone; from then on their connections do, and the queue may lose what it likes.

mod declined;
mod network;

use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tailor_domain::{Digest, JobId, JobState, LogKind};
use tailor_queue::{Class, JobQueue, Lease, Seat, Standing};
use tailor_serverkit::Settings;
use tailor_train::{Meeting, Ranks};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

pub use self::declined::Declined;
pub use self::network::Network;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::view::View;

/// Pause between two looks at who has come.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Pause between two looks on the device's thread.
const MEET_EVERY: Duration = Duration::from_millis(20);
/// Looks between two at the store, whether the job was cancelled meanwhile.
const LOOKS_PER_VIEW: u32 = 10;
/// Gathering that takes longer is told in the job's log.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the meeting's host may take to answer.
const MEETING_TIMEOUT: Duration = Duration::from_secs(15);
/// Where rank 0 says which attempt it is and which checkpoint all go on from.
const PLAN: &str = "plan";

/// What a worker does to train with others.
#[derive(Debug)]
pub struct Gatherer {
    network: Network,
    /// Of this worker.
    class: Class,
    gather: Duration,
    timeout: Duration,
    pub declined: Declined,
}

/// What gathering came to.
pub enum Gathered {
    All(Arc<Party>),
    /// The job goes back to the queue.
    GiveBack,
    Cancelled,
    /// Somebody else has the job.
    LeaseLost,
}

/// The ranks of one attempt before they are connected, as each of them sees it.
#[derive(Debug)]
pub struct Party {
    meeting: Meeting,
    own: IpAddr,
    rank: u32,
    ranks: u32,
    timeout: Duration,
    /// Names of the other workers; rank 0 knows them.
    pub with: Vec<String>,
    state: Arc<State>,
    watch: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    lost: AtomicBool,
    connected: AtomicBool,
}

impl Gatherer {
    pub fn new(settings: &Settings, class: Class) -> Self {
        Self {
            network: Network::new(&settings.trainer.rendezvous_host, &settings.services.registry),
            class,
            gather: Duration::from_millis(settings.trainer.gather_ms),
            timeout: Duration::from_millis(settings.trainer.ranks_timeout_ms),
            declined: Declined::default(),
        }
    }

    /// Calls for the workers that the job needs beside this one.
    ///
    /// # Errors
    /// This machine has no address for others; the store is away.
    pub async fn gather(
        &self,
        queue: &Arc<dyn JobQueue>,
        journal: &Journal,
        lease: &Lease,
        ranks: u32,
        stop: &CancellationToken,
    ) -> Result<Gathered> {
        let own = self.network.own().await?;
        let (meeting, address) = host(own).await?;
        let wanted = ranks.saturating_sub(1);
        let started = Instant::now();
        let (mut looks, mut view, mut told) = (0u32, View::default(), false);
        let taken = loop {
            let standing = match look(queue.as_ref(), lease, self.class, wanted, &address).await {
                Ok(Some(standing)) => standing,
                Ok(None) => Standing::default(),
                Err(()) => return Ok(Gathered::LeaseLost),
            };
            if standing.taken.len() as u64 == u64::from(wanted) {
                break standing.taken;
            }
            if let Some(older) = standing.older.iter().find(|job| !self.declined.has(job)) {
                tracing::info!(job = %lease.job, %older, "an older job lacks workers; this one gives way");
                return Ok(Gathered::GiveBack);
            }
            if started.elapsed() >= self.gather {
                tracing::info!(job = %lease.job, ranks, found = standing.taken.len() + 1, "too few workers; the job goes back");
                return Ok(Gathered::GiveBack);
            }
            if looks.is_multiple_of(LOOKS_PER_VIEW) {
                journal.log(&lease.job, view.seq + 1).await?.iter().for_each(|entry| view.apply(entry));
                // Cancelled, or given up by the reconciler just before this attempt began.
                if view.state.is_final() {
                    return Ok(Gathered::Cancelled);
                }
                // Whoever leases it next sets it aside.
                if view.state == JobState::Paused {
                    return Ok(Gathered::GiveBack);
                }
            }
            if !told && started.elapsed() >= PATIENCE.min(self.gather / 2) {
                tell(journal, &lease.job, ranks).await?;
                told = true;
            }
            looks += 1;
            tokio::select! {
                () = stop.cancelled() => return Ok(Gathered::GiveBack),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        };
        let state = Arc::<State>::default();
        let watch = tokio::spawn(watch_call(queue.clone(), lease.clone(), self.class, wanted, address, state.clone()));
        let timeout = self.timeout;
        Ok(Gathered::All(Arc::new(Party { meeting, own, rank: 0, ranks, timeout, with: taken, state, watch })))
    }

    /// Goes to the meeting of a call whose seats are all taken.
    ///
    /// # Errors
    /// Rank 0 is gone or cannot be reached.
    pub async fn join(&self, queue: &Arc<dyn JobQueue>, seat: &Seat) -> Result<Party> {
        let address = seat.address.parse().map_err(|error| Error::Ranks(format!("{}: {error}", seat.address)))?;
        let own = self.network.toward(address).await?;
        let meeting = blocking(move || Meeting::join(address, MEETING_TIMEOUT).map_err(ranks_error)).await?;
        let state = Arc::<State>::default();
        let watch = tokio::spawn(watch_seat(queue.clone(), seat.clone(), state.clone()));
        let (rank, ranks, timeout) = (seat.rank, seat.ranks, self.timeout);
        Ok(Party { meeting, own, rank, ranks, timeout, with: Vec::new(), state, watch })
    }
}

/// A meeting on a port that the system chooses, and its address.
async fn host(own: IpAddr) -> Result<(Meeting, String)> {
    let cannot = move |error: std::io::Error| {
        Error::Ranks(format!("cannot listen on {own}: {error}; trainer.rendezvous_host must be this machine's"))
    };
    let listener = TcpListener::bind((own, 0)).map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?.to_string();
    let meeting = blocking(move || Meeting::host(listener, MEETING_TIMEOUT).map_err(ranks_error)).await?;
    Ok((meeting, address))
}

/// Who has come; None while the queue is away, Err once the lease is lost.
async fn look(
    queue: &dyn JobQueue,
    lease: &Lease,
    class: Class,
    wanted: u32,
    address: &str,
) -> Result<Option<Standing>, ()> {
    let beaten = queue.heartbeat(lease).await;
    let called = match beaten {
        Ok(()) => queue.call(lease, class, wanted, address).await,
        Err(error) => Err(error),
    };
    match called {
        Ok(standing) => Ok(Some(standing)),
        Err(error) if error.retryable() => {
            tracing::warn!(job = %lease.job, %error, "cannot call for workers; trying again");
            Ok(None)
        }
        Err(error) => {
            tracing::warn!(job = %lease.job, %error, "lease lost while workers were gathered");
            Err(())
        }
    }
}

/// Says once, not with every try, what the job waits for.
async fn tell(journal: &Journal, job: &JobId, ranks: u32) -> Result<()> {
    let message = format!(
        "waiting for {ranks} free workers at once (train.ranks); start more tailor-trainer processes on the same queue and \
         store, or cancel the job and take fewer ranks"
    );
    let last = journal.log(job, 1).await?.pop();
    if last.is_none_or(|last| last.message != message) {
        journal.append(job, 0, LogKind::Note, &message).await?;
    }
    Ok(())
}

/// Keeps the call open until the ranks are connected, and sees whether a seat was given up.
async fn watch_call(
    queue: Arc<dyn JobQueue>,
    lease: Lease,
    class: Class,
    wanted: u32,
    address: String,
    state: Arc<State>,
) {
    while !state.connected.load(Ordering::Acquire) {
        match queue.call(&lease, class, wanted, &address).await {
            Ok(standing) if standing.taken.len() as u64 == u64::from(wanted) => {}
            Err(error) if error.retryable() => tracing::warn!(job = %lease.job, %error, "cannot renew the call"),
            Ok(_) | Err(_) => return state.lost.store(true, Ordering::Release),
        }
        tokio::time::sleep((lease.ttl / 4).min(Duration::from_secs(2))).await;
    }
    // The connections say from now on who is there.
    let _ = queue.hang_up(&lease).await;
}

async fn watch_seat(queue: Arc<dyn JobQueue>, seat: Seat, state: Arc<State>) {
    while !state.connected.load(Ordering::Acquire) {
        match queue.keep_seat(&seat).await {
            Ok(_) => {}
            Err(error) if error.retryable() => tracing::warn!(job = %seat.job, %error, "cannot keep the seat"),
            Err(_) => return state.lost.store(true, Ordering::Release),
        }
        tokio::time::sleep((seat.ttl / 4).min(Duration::from_secs(2))).await;
    }
}

impl Party {
    /// Rank 0 says which attempt it is and which checkpoint all go on from.
    ///
    /// # Errors
    /// The meeting cannot be served any more.
    pub fn announce(&self, fence: u64, checkpoint: Option<&Digest>) -> Result<()> {
        let plan = format!("{fence} {}", checkpoint.map(ToString::to_string).unwrap_or_default());
        self.meeting.set(PLAN, plan.as_bytes()).map_err(ranks_error)
    }

    /// What rank 0 has announced, waited for. On the device's thread.
    ///
    /// # Errors
    /// Rank 0 is gone, or `gone` says that this rank must go.
    pub fn plan(&self, gone: &dyn Fn() -> bool) -> Result<(u64, Option<Digest>)> {
        self.wait_for(PLAN, gone)?;
        let plan = self.meeting.get(PLAN).map_err(ranks_error)?;
        let plan = String::from_utf8_lossy(&plan).into_owned();
        let broken =
            || Error::Ranks(format!("rank 0 announced {plan:?}; run the same version of Tailor on all trainers"));
        let (fence, digest) = plan.split_once(' ').ok_or_else(broken)?;
        let digest = if digest.is_empty() { None } else { Some(Digest::try_new(digest)?) };
        Ok((fence.parse().map_err(|_| broken())?, digest))
    }

    /// Waits until all ranks have loaded what they need, for as long as the queue says that they are there, and connects them.
    /// On the device's thread.
    ///
    /// # Errors
    /// A rank is gone or cannot be reached, or `gone` says that this one must go.
    pub fn connect(&self, gone: &dyn Fn() -> bool) -> Result<Ranks> {
        self.meeting.set(&ready(self.rank), b"1").map_err(ranks_error)?;
        for rank in 0..self.ranks {
            self.wait_for(&ready(rank), gone)?;
        }
        let connected = Ranks::connect(&self.meeting, self.own, self.rank, self.ranks, self.timeout)?;
        self.state.connected.store(true, Ordering::Release);
        Ok(connected)
    }

    fn wait_for(&self, key: &str, gone: &dyn Fn() -> bool) -> Result<()> {
        while !self.meeting.has(key).map_err(ranks_error)? {
            if gone() {
                return Err(Error::Ranks("this worker must leave before the ranks are connected".into()));
            }
            if self.state.lost.load(Ordering::Acquire) {
                return Err(Error::Ranks("a worker is gone before the ranks are connected".into()));
            }
            std::thread::sleep(MEET_EVERY);
        }
        Ok(())
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        // Where the ranks are connected it ends by itself, and takes the call with it.
        if !self.state.connected.load(Ordering::Acquire) {
            self.watch.abort();
        }
    }
}

fn ready(rank: u32) -> String {
    format!("ready/{rank}")
}

fn ranks_error(error: impl std::fmt::Display) -> Error {
    let words = error.to_string();
    Error::Ranks(words.strip_prefix("ranks: ").map(ToOwned::to_owned).unwrap_or(words))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    spawn_blocking(work).await.unwrap_or(Err(Error::DeviceGone))
}

#[cfg(test)]
mod tests;
