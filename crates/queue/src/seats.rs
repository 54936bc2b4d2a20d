//! A job that several workers train: the holder of its lease calls for others, and they take seats.
//!
//! A call is open as long as its caller renews it, and ends with the lease. Workers are shown the oldest call first, and
//! once all of a call's seats are taken none of it is given again: a seat that is then given up leaves the call short, so
//! its caller sees that a rank is gone. Two calls that wait for each other's workers cannot stand still: the caller of the
//! younger one is told, and gives way, if its worker could take a seat in the older one.

use std::time::Duration;

use tailor_domain::JobId;

/// What a caller is told of its call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// Workers in the call's seats, by rank from 1 on.
    pub taken: Vec<String>,
    /// Jobs that the caller's worker can run, whose calls are from before this one and lack workers: to give way serves both.
    pub older: Vec<JobId>,
}

/// A worker's place in another worker's job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    pub job: JobId,
    /// Of the caller's lease.
    pub epoch: u64,
    /// From 1 on; 0 is the caller.
    pub rank: u32,
    /// How many there are with the caller.
    pub ranks: u32,
    /// `host:port` where the ranks meet.
    pub address: String,
    pub worker: String,
    /// How long the seat lasts from the moment it is given, and again from each [`crate::JobQueue::keep_seat`].
    pub ttl: Duration,
}
