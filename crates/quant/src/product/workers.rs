//! Who works on a product. The threads are the caller's, so that a program has one pool and not two that fight.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads that can be called on together.
pub trait Workers: Sync {
    /// Calls `work` on each thread, the calling one among them, and returns when all calls have. It may be fewer threads
    /// than there are; one is enough.
    fn run(&self, work: &(dyn Fn() + Sync));
}

/// The calling thread.
pub struct Alone;

impl Workers for Alone {
    fn run(&self, work: &(dyn Fn() + Sync)) {
        work();
    }
}

/// Calls `work` with each number below `tasks`, once, by whoever has time.
pub fn spread(workers: &dyn Workers, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
    if tasks <= 1 {
        return (0..tasks).for_each(work);
    }
    let next = AtomicUsize::new(0);
    workers.run(&|| take(&next, tasks, work));
}

/// Takes tasks until none is left.
pub(super) fn take(next: &AtomicUsize, tasks: usize, mut work: impl FnMut(usize)) {
    loop {
        let task = next.fetch_add(1, Ordering::Relaxed);
        if task >= tasks {
            return;
        }
        work(task);
    }
}
