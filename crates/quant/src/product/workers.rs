//! Who works on a product. The threads are the caller's, so that a program has one pool and not two that fight.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads that can be called on together.
pub trait Workers: Sync {
    /// Calls `work` on each thread, the calling one among them, and returns when all calls have. It may be fewer threads
    /// than there are; one is enough.
    fn run(&self, work: &(dyn Fn() + Sync));

    /// How many calls [`Self::run`] will make, as near as can be said: what is shared out by it is shared out well.
    fn count(&self) -> usize;
}

/// The calling thread.
pub struct Alone;

impl Workers for Alone {
    fn run(&self, work: &(dyn Fn() + Sync)) {
        work();
    }

    fn count(&self) -> usize {
        1
    }
}

/// Calls `work` with each number below `tasks`, once, by whoever has time.
pub fn spread(workers: &dyn Workers, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
    if tasks <= 1 {
        return (0..tasks).for_each(work);
    }
    let next = AtomicUsize::new(0);
    let until_none_is_left = || {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            work(task);
        }
    };
    workers.run(&until_none_is_left);
}

/// Tasks of which each worker begins with a run of its own: weights that are read one after the other are one stream for
/// each thread, which memory is fastest at. Who has finished takes from the others' runs.
pub(super) struct Runs {
    next: Vec<Next>,
    tasks: usize,
    workers: AtomicUsize,
}

/// A run's next task, in a cache line of its own.
#[repr(align(64))]
struct Next(AtomicUsize);

impl Runs {
    pub fn new(tasks: usize, workers: usize) -> Self {
        let count = workers.clamp(1, tasks.max(1));
        let first = |run: usize| Next(AtomicUsize::new(run * tasks / count));
        Self { next: (0..count).map(first).collect(), tasks, workers: AtomicUsize::new(0) }
    }

    /// Takes tasks until none is left; each worker calls it once.
    pub fn take(&self, mut work: impl FnMut(usize)) {
        let count = self.next.len();
        let own = self.workers.fetch_add(1, Ordering::Relaxed);
        for run in (own..own + count).map(|run| run % count) {
            let end = (run + 1) * self.tasks / count;
            loop {
                let task = self.next[run].0.fetch_add(1, Ordering::Relaxed);
                if task >= end {
                    break;
                }
                work(task);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_of_all_runs_is_taken_once_by_however_many_workers() {
        for (tasks, expected, workers) in [(0, 2, 1), (1, 4, 3), (7, 3, 3), (100, 4, 2), (64, 1, 5), (13, 16, 4)] {
            let runs = Runs::new(tasks, expected);
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            std::thread::scope(|scope| {
                for _ in 0..workers {
                    scope.spawn(|| {
                        runs.take(|task| {
                            counts[task].fetch_add(1, Ordering::Relaxed);
                        });
                    });
                }
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{tasks} tasks of {expected}");
        }
    }
}
