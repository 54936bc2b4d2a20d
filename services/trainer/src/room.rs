//! What fits beside what runs in one worker: the libraries and each base count once, adapters and optimizers for every job, and
//! of the passes the largest, since only one job has its turn at a time.
//!
//! Counted with rows as long as `train.max_tokens` allows, so that nothing need be tokenised to know it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tailor_domain::Digest;
use tailor_plan::{Compute, Device, Memory};

/// A job's memory by part, and which base it is on.
#[derive(Debug, Clone, PartialEq)]
pub struct Footprint {
    /// Its fingerprint and the type it is computed in: what must be the same to be shared.
    pub base: (Digest, Compute),
    pub memory: Memory,
}

/// The worker's memory, as far as it is given away.
#[derive(Debug)]
pub struct Room {
    worker: Device,
    taken: Arc<Mutex<Taken>>,
}

/// By the place's number; None for a job of which nothing is known, which shares with nobody.
#[derive(Debug, Default)]
struct Taken {
    last: u64,
    jobs: BTreeMap<u64, Option<Footprint>>,
}

/// A job's place, free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    number: u64,
    taken: Arc<Mutex<Taken>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.taken).jobs.remove(&self.number);
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    // Nothing panics while it is held.
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Room {
    /// Of the GPU or the machine that jobs run on, or as much of it as is allowed.
    pub fn new(limit: Option<u64>) -> Self {
        let mut worker = tailor_train::device();
        worker.memory_bytes = worker.memory_bytes.min(limit.unwrap_or(u64::MAX));
        Self::of(worker)
    }

    pub fn of(worker: Device) -> Self {
        Self { worker, taken: Arc::default() }
    }

    /// What jobs are planned for.
    pub fn worker(&self) -> &Device {
        &self.worker
    }

    /// Whether others may come while those run that are here.
    pub fn is_shared(&self) -> bool {
        lock(&self.taken).jobs.values().all(Option::is_some)
    }

    /// A place for a job that shares with nobody.
    pub fn alone(&self) -> Place {
        self.place(&mut lock(&self.taken), None)
    }

    /// A place beside those that are taken. The first job gets one whatever it takes: that it can run at all was seen to when
    /// it was created, and it finds smaller passes by itself.
    ///
    /// # Errors
    /// It does not fit; why.
    pub fn take(&self, job: Option<Footprint>) -> Result<Place, String> {
        let mut taken = lock(&self.taken);
        if !taken.jobs.is_empty() {
            let Some(job) = &job else { return Err("what it takes is not known".into()) };
            let others: Option<Vec<&Footprint>> = taken.jobs.values().map(Option::as_ref).collect();
            let Some(mut all) = others else { return Err("what runs shares with nobody".into()) };
            all.push(job);
            let (together, limit) = (together(&all), self.worker.memory_bytes);
            if together > limit {
                let (together, limit) = (together >> 20, limit >> 20);
                return Err(format!("together they take {together} MiB, this worker has {limit} MiB"));
            }
        }
        Ok(self.place(&mut taken, job))
    }

    fn place(&self, taken: &mut Taken, job: Option<Footprint>) -> Place {
        taken.last += 1;
        taken.jobs.insert(taken.last, job);
        Place { number: taken.last, taken: Arc::clone(&self.taken) }
    }
}

/// Bytes of jobs in one process.
fn together(jobs: &[&Footprint]) -> u64 {
    let most = |part: fn(&Memory) -> u64| jobs.iter().map(|job| part(&job.memory)).max().unwrap_or(0);
    let bases: BTreeMap<_, u64> =
        jobs.iter().map(|job| (job.base.clone(), job.memory.weights + job.memory.embeddings)).collect();
    let own = |memory: &Memory| memory.adapter + memory.gradients + memory.optimizer;
    most(|memory| memory.runtime)
        + bases.values().sum::<u64>()
        + jobs.iter().map(|job| own(&job.memory)).sum::<u64>()
        + most(|memory| memory.activations + memory.working_set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(base: &str, compute: Compute, activations: u64) -> Footprint {
        let memory = Memory {
            runtime: 100,
            weights: 1000,
            embeddings: 200,
            adapter: 10,
            gradients: 10,
            optimizer: 30,
            activations,
            working_set: 50,
        };
        Footprint { base: (Digest::of(base.as_bytes()), compute), memory }
    }

    #[test]
    fn a_base_counts_once_for_all_that_share_it_and_the_largest_pass_for_all() {
        let (one, two) = (job("a", Compute::F32, 300), job("a", Compute::F32, 500));
        assert_eq!(together(&[&one]), one.memory.total());
        assert_eq!(together(&[&one, &two]), 100 + 1200 + 2 * 50 + 550);
        for other in [job("b", Compute::F32, 300), job("a", Compute::Bf16, 300)] {
            assert_eq!(together(&[&one, &other]), 100 + 2 * 1200 + 2 * 50 + 350, "{:?}", other.base);
        }
    }

    #[test]
    fn what_does_not_fit_beside_the_others_is_turned_away_until_one_has_left() {
        // Two on one base take 1750 as above; a third 50 more.
        let room = Room::of(Device::cpu("test", 1790, true));
        let first = room.take(Some(job("a", Compute::F32, 300))).expect("the first always fits");
        let _second = room.take(Some(job("a", Compute::F32, 300))).expect("shares the base");
        let another_base = room.take(Some(job("b", Compute::F32, 300))).expect_err("no room for a second base");
        assert!(another_base.contains("this worker has"), "{another_base}");
        assert!(room.take(Some(job("a", Compute::F32, 600))).is_err(), "its pass is too large");
        drop(first);
        room.take(Some(job("a", Compute::F32, 300))).expect("the first has left");
    }

    #[test]
    fn a_job_of_which_nothing_is_known_runs_by_itself() {
        let room = Room::of(Device::cpu("test", u64::MAX, true));
        let unknown = room.take(None).expect("nobody is there");
        assert!(!room.is_shared());
        assert!(room.take(Some(job("a", Compute::F32, 1))).is_err() && room.take(None).is_err());
        drop(unknown);
        let _known = room.take(Some(job("a", Compute::F32, 1))).expect("alone");
        assert!(room.is_shared() && room.take(None).is_err());
    }

    #[test]
    fn the_first_job_gets_a_place_whatever_it_takes() {
        let room = Room::of(Device::cpu("test", 1, true));
        assert!(room.take(Some(job("a", Compute::F32, 1))).is_ok());
    }
}
