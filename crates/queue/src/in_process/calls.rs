//! Open calls for ranks, by the epoch of the caller's lease: the oldest first.

use std::collections::BTreeMap;
use std::time::Duration;

use tailor_domain::JobId;
use tokio::time::Instant;

use crate::{Class, Error, Lease, Result, Seat, Standing};

#[derive(Default)]
pub struct Calls(BTreeMap<u64, Call>);

struct Call {
    job: JobId,
    class: Class,
    address: String,
    deadline: Instant,
    /// All seats were taken once; none is given any more.
    closed: bool,
    seats: Vec<Option<Taken>>,
}

struct Taken {
    worker: String,
    deadline: Instant,
}

impl Call {
    fn free(&self) -> Option<usize> {
        if self.closed { None } else { self.seats.iter().position(Option::is_none) }
    }

    /// Whether it lacks workers of this class.
    fn wants(&self, class: Class) -> bool {
        self.class <= class && self.free().is_some()
    }

    fn expire(&mut self, now: Instant) {
        for seat in &mut self.seats {
            seat.take_if(|taken| taken.deadline <= now);
        }
    }
}

impl Calls {
    fn expire(&mut self, now: Instant) {
        self.0.retain(|_, call| call.deadline > now);
        self.0.values_mut().for_each(|call| call.expire(now));
    }

    /// The caller's lease is held.
    pub fn call(&mut self, lease: &Lease, class: Class, seats: u32, address: &str, now: Instant) -> Standing {
        self.expire(now);
        let deadline = now + lease.ttl;
        let call = self.0.entry(lease.epoch).or_insert_with(|| Call {
            job: lease.job.clone(),
            class: lease.class,
            address: address.to_owned(),
            deadline,
            closed: false,
            seats: std::iter::repeat_with(|| None).take(seats as usize).collect(),
        });
        call.deadline = deadline;
        let taken = call.seats.iter().flatten().map(|taken| taken.worker.clone()).collect();
        let older = self.0.range(..lease.epoch).filter(|(_, call)| call.wants(class));
        Standing { taken, older: older.map(|(_, call)| call.job.clone()).collect() }
    }

    /// The oldest first.
    pub fn open(&mut self, class: Class, now: Instant) -> Vec<JobId> {
        self.expire(now);
        self.0.values().filter(|call| call.wants(class)).map(|call| call.job.clone()).collect()
    }

    pub fn hang_up(&mut self, lease: &Lease) {
        self.0.remove(&lease.epoch);
    }

    /// A job that is leased anew, finished or given back calls no more.
    pub fn end(&mut self, job: &JobId) {
        self.0.retain(|_, call| call.job != *job);
    }

    pub fn take(&mut self, worker: &str, job: &JobId, ttl: Duration, now: Instant) -> Option<Seat> {
        self.expire(now);
        let (epoch, call) = self.0.iter_mut().find(|(_, call)| call.job == *job)?;
        let (epoch, at) = (*epoch, call.free()?);
        *call.seats.get_mut(at)? = Some(Taken { worker: worker.to_owned(), deadline: now + ttl });
        call.closed = call.seats.iter().all(Option::is_some);
        let count = u32::try_from(call.seats.len()).unwrap_or(u32::MAX);
        Some(Seat {
            job: call.job.clone(),
            epoch,
            rank: u32::try_from(at + 1).unwrap_or(u32::MAX),
            ranks: count + 1,
            address: call.address.clone(),
            worker: worker.to_owned(),
            ttl,
        })
    }

    fn held(&mut self, seat: &Seat, now: Instant) -> Result<(bool, &mut Option<Taken>)> {
        self.expire(now);
        let lost = || Error::LeaseLost { job: seat.job.clone(), epoch: seat.epoch };
        let call = self.0.get_mut(&seat.epoch).ok_or_else(lost)?;
        let at = (seat.rank as usize).wrapping_sub(1);
        let place = call.seats.get_mut(at).ok_or_else(lost)?;
        match place {
            Some(taken) if taken.worker == seat.worker => Ok((call.closed, place)),
            _ => Err(lost()),
        }
    }

    pub fn keep(&mut self, seat: &Seat, now: Instant) -> Result<bool> {
        let (closed, place) = self.held(seat, now)?;
        if let Some(taken) = place {
            taken.deadline = now + seat.ttl;
        }
        Ok(closed)
    }

    pub fn leave(&mut self, seat: &Seat, now: Instant) {
        if let Ok((_, place)) = self.held(seat, now) {
            *place = None;
        }
    }
}
