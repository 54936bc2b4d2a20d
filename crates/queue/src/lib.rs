//! The job queue: which job runs next, and who holds it.
//!
//! The queue is the fast path, not the truth. It may lose everything it holds: a reconciler enqueues again whatever the
//! object store says is unfinished. It promises less than a database, and exactly this:
//!
//! - a job is in the queue at most once, either queued or leased;
//! - a worker is given, of the jobs that it can run ([`Class`]), the one that has waited longest; the others keep their places;
//! - a lease is held by one worker until its deadline; a heartbeat moves the deadline;
//! - each lease of a job has a higher epoch than the one before, and a call with an old epoch is refused;
//! - a lease that runs out puts its job back into the queue.
//!
//! A job that several workers train together is leased by one; the others take seats that it offers ([`Seat`]). Workers look
//! for seats before they ask for a job.
//!
//! Delivery is at least once. That a result is published once is the object store's business, not the queue's.

mod class;
mod error;
mod in_process;
mod seats;

#[cfg(feature = "conformance")]
pub mod conformance;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tailor_domain::JobId;

pub use class::Class;
pub use error::{Error, Result};
pub use in_process::InProcessQueue;
pub use seats::{Seat, Standing};

/// One worker's right to run one job, until the deadline that the last heartbeat set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub job: JobId,
    /// Higher than that of every earlier lease of this job; names this lease in later calls.
    pub epoch: u64,
    pub worker: String,
    /// Of the job.
    pub class: Class,
    /// How long the lease lasts from the moment it is given, and again from each heartbeat.
    pub ttl: Duration,
    /// The W3C `traceparent` of the request that made the job, so that one trace follows it here.
    pub trace: Option<String>,
}

/// How much work waits and how much is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    pub queued: u64,
    pub leased: u64,
}

/// A queue of job ids with leases. Implementations pass `conformance::check`.
#[async_trait]
pub trait JobQueue: Send + Sync + fmt::Debug + 'static {
    /// Queues a job for workers of its class and above; says whether it was added. Does nothing while the job is queued or
    /// leased.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; the job may or may not be queued then, and the same call may be made again.
    async fn enqueue(&self, job: &JobId, class: Class, trace: Option<String>) -> Result<bool>;

    /// Takes the job that has waited longest of those that a worker of this class can run, waiting up to `wait` for one to
    /// come; `None` when none came.
    ///
    /// Dropping the returned future is safe: a job that was taken and not returned comes back when its lease runs out.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn lease(&self, worker: &str, class: Class, ttl: Duration, wait: Duration) -> Result<Option<Lease>>;

    /// Moves the lease's deadline to `lease.ttl` from now.
    ///
    /// # Errors
    /// [`Error::LeaseLost`]: stop working on the job. [`Error::Unavailable`]: try again before the deadline.
    async fn heartbeat(&self, lease: &Lease) -> Result<()>;

    /// Ends the lease and takes the job out of the queue: it is finished, whatever the outcome.
    ///
    /// # Errors
    /// [`Error::LeaseLost`]: somebody else has the job or will get it. [`Error::Unavailable`].
    async fn ack(&self, lease: &Lease) -> Result<()>;

    /// Ends the lease and puts the job at the back of the queue.
    ///
    /// # Errors
    /// As [`JobQueue::ack`].
    async fn release(&self, lease: &Lease) -> Result<()>;

    /// Calls for `seats` workers to train the lease's job at `address` together with its holder, a worker of this class, or keeps
    /// the call open for another `lease.ttl`, and says who has come. The number and the address of an open call stay as they
    /// were first said.
    ///
    /// # Errors
    /// As [`JobQueue::heartbeat`], which this does not stand for.
    async fn call(&self, lease: &Lease, class: Class, seats: u32, address: &str) -> Result<Standing>;

    /// Ends the call; who sits in a seat of it has lost it. Nothing happens where there is none.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn hang_up(&self, lease: &Lease) -> Result<()>;

    /// Jobs that a worker of this class can run and whose open calls have a free seat, that of the oldest call first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn calls(&self, class: Class) -> Result<Vec<JobId>>;

    /// Takes the first free seat of the open call for this job, for `ttl`; `None` where there is none (any more). Does not wait.
    /// Who may not keep it should not take it: a call ends short when a seat is given up.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn take_seat(&self, worker: &str, job: &JobId, ttl: Duration) -> Result<Option<Seat>>;

    /// Keeps the seat for another `seat.ttl`; says whether all of the call's seats are taken.
    ///
    /// # Errors
    /// [`Error::LeaseLost`]: the call has ended, or the seat was not kept in time. [`Error::Unavailable`].
    async fn keep_seat(&self, seat: &Seat) -> Result<bool>;

    /// Gives the seat up.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn leave_seat(&self, seat: &Seat) -> Result<()>;

    /// # Errors
    /// [`Error::Unavailable`].
    async fn depth(&self) -> Result<Depth>;

    /// Wakes those who wait for this job's log to grow. A hint: it may be lost.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn notify(&self, job: &JobId) -> Result<()>;

    /// Waits until somebody calls [`JobQueue::notify`] for this job, at most `timeout`; says whether somebody may have.
    /// Only calls made while it waits count, so read the log again after it returns, whatever it says.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn wait_changed(&self, job: &JobId, timeout: Duration) -> Result<bool>;

    /// Whether the queue answers.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`].
    async fn ping(&self) -> Result<()>;
}
