//! libtorch's own threads for kernels that are not libtorch's: one pool in the process, and not two that fight.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use tailor_quant::Workers;

use crate::ffi;

/// As many threads as libtorch uses for an operator called on this thread. They wait spinning for a moment, so that calling
/// them again costs microseconds.
pub struct TorchWorkers;

/// What every thread gets.
struct Call<'a> {
    work: &'a (dyn Fn() + Sync),
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

extern "C" fn enter(call: *mut c_void) {
    // SAFETY: `run` below passes its own `Call`, which lives until all threads have returned.
    let call = unsafe { &*call.cast::<Call<'_>>() };
    // A panic must not go through the pool's C code.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(call.work)) {
        *call.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(panic);
    }
}

impl Workers for TorchWorkers {
    fn run(&self, work: &(dyn Fn() + Sync)) {
        let mut call = Call { work, panic: Mutex::new(None) };
        // SAFETY: the shim returns when every thread has returned from `enter`.
        unsafe { ffi::tailor_parallel(enter, (&raw mut call).cast()) };
        let panic = call.panic.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(panic) = panic {
            std::panic::resume_unwind(panic);
        }
    }

    fn count(&self) -> usize {
        usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tailor_quant::spread;

    use super::*;

    #[test]
    fn every_task_is_done_once_and_a_panic_comes_back_to_the_caller() {
        let counts: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
        spread(&TorchWorkers, counts.len(), &|task| {
            counts[task].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        let failed = catch_unwind(|| spread(&TorchWorkers, 8, &|task| assert_ne!(task, 5, "task 5")));
        assert!(failed.is_err());
    }
}
